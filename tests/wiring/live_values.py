"""Another value for every key that a running appliance can take, and the settings that they are put into."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.jwk import ECKey

KEYS = [f"op-live-settings-key-{n}-0123456789" for n in range(3)]
ENV = {
    "KEY_A": KEYS[0],
    "KEY_B": KEYS[1],
    "LAB": "sk-lab",
    "OTHER_LAB": "sk-other-lab",
    "OIDC": "client-secret-one",
    "OTHER_OIDC": "client-secret-two",
}
CHAT, EMBEDDER = "smollm2-135m-instruct", "all-minilm-l6-v2"
Doc = dict[str, Any]


def _authority() -> str:
    """A certificate in PEM; nobody checks more than that it is one."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


AUTHORITY = _authority()


def _key_set(path: Path) -> str:
    """A file with the public key of an identity provider."""
    key = ECKey.generate_key("P-256", {"kid": path.stem, "alg": "ES256"})
    path.write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    return str(path)


def _issuer(folder: Path) -> Doc:
    return {
        "name": "corp",
        "issuer": "https://login.example.com",
        "audience": ["outpost"],
        "jwks": {"file": _key_set(folder / "keys.json")},
        "default_role": "member",
        "claims": {"role": "groups", "team": "team", "organization": "tenant"},
        "login": {
            "client_id": "console",
            "client_secret": {"env": "OIDC"},
            "redirect_base": "https://box.example.com:8081",
            "authorization_endpoint": "https://login.example.com/authorize",
            "token_endpoint": "https://login.example.com/token",
        },
    }


def _service_account() -> str:
    """The file of a service account of Google Cloud; nobody is asked with it."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = {"type": "service_account", "client_email": "lab@p.example.com", "private_key": pem}
    return json.dumps({**account, "private_key_id": "1", "token_uri": "https://login.example.com/token"})


SERVICE_ACCOUNT = _service_account()
ENV["ACCOUNT"] = SERVICE_ACCOUNT


def base(folder: Path) -> Doc:
    lab = {"base_url": "http://127.0.0.1:1/v1", "zone": "on_box", "api_key": {"env": "LAB"}}
    return {
        "server": {"listen": "127.0.0.1:0"},
        "console": {"listen": "127.0.0.1:0"},
        "data_dir": str(folder / "data"),
        "log": {"level": "info"},
        "identity": {
            "keys": [{"name": "a", "key": {"env": "KEY_A"}, "role": "member"}],
            "oidc": [_issuer(folder)],
        },
        "deployments": [{"name": name, "model": CHAT} for name in ("spare", "one", "two")],
        "providers": [{"name": "lab", **lab}, {"name": "lab2", **lab}],
        "routes": [
            {"model": "far", "targets": [{"provider": "lab", "model": "x"}]},
            {"model": "near", "targets": [{"deployment": "one"}]},
        ],
        "limits": [{"name": "fair", "scope": "key", "requests": "100/minute", "match": {"organization": "default"}}],
        "prices": [{"target": "one", "input": 1}],
        "records": {
            "content": "redacted",
            "content_rules": [{"team": "a", "organization": "default", "content": "none"}],
            "export": [{"name": "siem", "host": "127.0.0.1", "port": 9, "transport": "tls"}],
        },
    }


VALUES: dict[str, Any] = {
    "server.max_body": "1MiB",
    "server.max_json_depth": 10,
    "server.header_timeout": "1s",
    "server.body_timeout": "1s",
    "server.write_timeout": "1s",
    "server.drain_timeout": "1s",
    "server.max_connections": 7,
    "offline": True,
    "log.level": "error",
    "log.access": False,
    "identity.keys[].name": "b",
    "identity.keys[].key.env": "KEY_B",
    "identity.keys[].role": "admin",
    "deployments[].name": "other",
    "deployments[].model": EMBEDDER,
    "deployments[].replicas.min": 2,
    "deployments[].args.context": 128,
    "deployments[].args.slots": 3,
    "deployments[].args.threads": 1,
    "deployments[].args.prefill_chunk": 16,
    "deployments[].args.max_waiting": 5,
    "deployments[].args.gpu_layers": 1,
    "deployments[].args.flash_attention": True,
    "deployments[].start_timeout": "7s",
    "deployments[].drain_timeout": "7s",
    "providers[].kind": "deepseek",
    "providers[].base_url": "http://127.0.0.1:2/v1",
    "providers[].headers": {"x-project": "research"},
    "providers[].cool_down": "5s",
    "providers[].max_requests_per_minute": 7,
    "providers[].api_key.env": "OTHER_LAB",
    "routes[].model": "farther",
    "routes[].aliases": ["alias"],
    "routes[].targets[].provider": "lab2",
    "routes[].targets[].model": "y",
    "routes[].targets[].overrides": {"temperature": 0.5},
    "routes[].deadlines.connect": "1s",
    "routes[].deadlines.first_token": "1s",
    "routes[].deadlines.idle": "1s",
    "routes[].deadlines.total": "1s",
    "routes[].deadlines.whole": "1s",
    "routes[].strategy": "latency",
    "routes[].sticky": False,
    "routes[].rescue": "resume",
    "routes[].buffer_tokens": 5,
    "routes[].fallback_on_content_filter": True,
    "routes[].hedge.percentile": 90,
    "routes[].hedge.share": "10%",
    "routes[].residency": "on_prem",
    "routes[].targets[].prefill": True,
    "routes[].targets[].when.min_prompt_tokens": 5,
    "routes[].targets[].when.max_prompt_tokens": 5,
    "routes[].targets[].when.capability": ["tools"],
    "routes[].targets[].when.tags": ["a"],
    "routes[].targets[].when.teams": ["a"],
    "routes[].targets[].when.organizations": ["a"],
    "routes[].targets[].when.keys": ["a"],
    "routes[].targets[].when.zones": ["on_box"],
    "routes[].targets[].when.hours": "08:00-18:00",
    "routes[].targets[].when.min_complexity": 5,
    "routes[].targets[].when.max_complexity": 5,
    "routes[].retries": 5,
    "routes[].drop_unsupported": True,
    "providers[].max_in_flight": 3,
    "identity.keys[].organization": "elsewhere",
    "identity.keys[].team": "somewhere",
    "identity.keys[].routes": ["far"],
    "identity.keys[].models": ["one"],
    "identity.keys[].zones": ["on_box"],
    "identity.keys[].addresses": ["10.0.0.0/8"],
    "identity.keys[].priority": "batch",
    "identity.oidc[].name": "renamed",
    "identity.oidc[].issuer": "https://other.example.com",
    "identity.oidc[].audience": ["another"],
    "identity.oidc[].algorithms": ["ES256"],
    "identity.oidc[].claims.user": "email",
    "identity.oidc[].claims.name": "nickname",
    "identity.oidc[].claims.role": "roles",
    "identity.oidc[].claims.team": "squad",
    "identity.oidc[].claims.organization": "company",
    "identity.oidc[].roles": {"ops": "operator"},
    "identity.oidc[].teams": {"squad-1": "one"},
    "identity.oidc[].default_role": "auditor",
    "identity.oidc[].organization": "elsewhere",
    "identity.oidc[].max_age": "1h",
    "identity.oidc[].skew": "5s",
    "identity.oidc[].max_stale": "2d",
    "identity.oidc[].login.client_id": "another",
    "identity.oidc[].login.client_secret.env": "OTHER_OIDC",
    "identity.oidc[].login.scopes": ["openid", "groups"],
    "identity.oidc[].login.redirect_base": "https://other.example.com:8081",
    "identity.oidc[].login.authorization_endpoint": "https://login.example.com/other",
    "identity.oidc[].login.token_endpoint": "https://login.example.com/other",
    "limits[].name": "fairer",
    "limits[].scope": "team",
    "limits[].match.organization": "other",
    "limits[].match.team": "research",
    "limits[].match.user": "ann",
    "limits[].match.service_account": "crawler",
    "limits[].match.key": "a",
    "limits[].match.model": "one",
    "limits[].match.route": "far",
    "limits[].match.provider": "lab",
    "limits[].match.tag": "x",
    "limits[].requests": "5/minute",
    "limits[].input_tokens": "5/minute",
    "limits[].output_tokens": "5/minute",
    "limits[].tokens": "5/minute",
    "limits[].usd": "5/month",
    "limits[].window": "calendar",
    "limits[].in_flight": 5,
    "prices[].target": "two",
    "prices[].input": 2,
    "prices[].output": 2,
    "prices[].cached": 2,
    "prices[].cache_write": 2,
    "prices[].reasoning": 2,
    "prices[].gpu_second": 2,
    "prices[].request": 2,
    "admission.max_waiting": 5,
    "admission.max_wait.interactive": "5s",
    "admission.max_wait.normal": "5s",
    "admission.max_wait.batch": "5s",
    "admission.weights.interactive": 50,
    "admission.weights.normal": 2,
    "admission.weights.batch": 2,
    "admission.default_priority": "batch",
    "admission.max_priority": "normal",
    "records.content": "full",
    "records.content_rules[].team": "b",
    "records.content_rules[].route": "near",
    "records.content_rules[].organization": "other",
    "records.content_rules[].content": "full",
    "records.retention.metadata": "500d",
    "records.retention.content": "5d",
    "records.retention.responses": "6d",
    "records.store_responses": False,
    "records.retention.minimum": "100d",
    "records.max_disk": "1GiB",
    "records.max_content": "1KiB",
    "records.export[].name": "other",
    "records.export[].format": "ocsf",
    "records.export[].host": "127.0.0.2",
    "records.export[].port": 10,
    "records.export[].transport": "tcp",
    "records.export[].facility": 16,
}
"""Key → another value, put into the first entry of a list."""


def _rename_provider(doc: Doc) -> None:
    doc["providers"][0]["name"] = doc["routes"][0]["targets"][0]["provider"] = "renamed"


def _other_deployment(doc: Doc) -> None:
    doc["routes"][1]["targets"][0]["deployment"] = "two"


def _key_from_a_file(doc: Doc) -> None:
    doc["identity"]["keys"][0]["key"] = {"file": str(_secret(doc, KEYS[2]))}


def _provider_key_from_a_file(doc: Doc) -> None:
    doc["providers"][0]["api_key"] = {"file": str(_secret(doc, "sk-from-a-file"))}


def _zone(doc: Doc) -> None:
    doc["limits"][0] |= {"requests": "100/day", "timezone": "Europe/Berlin"}


def _jwks_file(doc: Doc) -> None:
    doc["identity"]["oidc"][0]["jwks"] = {"file": _key_set(Path(doc["data_dir"]).parent / "more.json")}


def _jwks_url(doc: Doc) -> None:
    doc["identity"]["oidc"][0]["jwks"] = {"url": "https://login.example.com/keys"}


def _client_secret_from_a_file(doc: Doc) -> None:
    doc["identity"]["oidc"][0]["login"]["client_secret"] = {"file": str(_secret(doc, "client-secret-three"))}


def _certificates(*place: str) -> Callable[[Doc], None]:
    """A file with an authority, at a key that wants one."""

    def step(doc: Doc) -> None:
        path = Path(doc["data_dir"]).parent / "ca.pem"
        path.write_text(AUTHORITY)
        section, _, name = place
        doc[section][{"records": "export", "identity": "oidc"}[section]][0][name] = str(path)

    return step


def _secret(doc: Doc, text: str) -> Path:
    path = Path(doc["data_dir"]).parent / "secret"
    path.write_text(text)
    path.chmod(0o600)
    return path


def _provider(**keys: Any) -> Callable[[Doc], None]:
    """Another kind of provider in the place of the first."""
    return lambda doc: doc["providers"].__setitem__(0, {"name": "lab", **keys})


def _first_provider(**keys: Any) -> Callable[[Doc], None]:
    """The first one with something more."""
    return lambda doc: doc["providers"][0].update(keys)


def _keys(**first: Any) -> Callable[[Doc], None]:
    """Several keys in the place of one."""

    def step(doc: Doc) -> None:
        del doc["providers"][0]["api_key"]
        entry = {"name": "first", "key": {"env": "LAB"}, **first}
        if entry["key"] == "file":
            entry["key"] = {"file": str(_secret(doc, "sk-from-a-file"))}
        doc["providers"][0]["keys"] = [entry, {"name": "second", "key": {"env": "OTHER_LAB"}}]

    return step


def _signers(kind: str, name: str, of_a_file: bool) -> Callable[[Doc], None]:
    """A provider that is told who asks by other secrets than a key, one of them in the way that is to be tried."""

    def step(doc: Doc) -> None:
        bedrock = {"region": "r", "access_key": {"env": "LAB"}, "secret_key": {"env": "OTHER_LAB"}}
        keys: Doc = bedrock if kind == "bedrock" else {"project": "p"}
        text = SERVICE_ACCOUNT if name == "service_account" else "sk-from-a-file"
        keys[name] = (
            {"file": str(_secret(doc, text))} if of_a_file else {"env": "ACCOUNT" if kind == "vertex" else "LAB"}
        )
        doc["providers"][0] = {"name": "lab", "kind": kind, **keys}

    return step


def _first_route(**keys: Any) -> Callable[[Doc], None]:
    return lambda doc: doc["routes"][0].update(keys)


def _weighted(**keys: Any) -> Callable[[Doc], None]:
    """Something of a target that only has effect with strategy weighted."""

    def step(doc: Doc) -> None:
        route = doc["routes"][0]
        route["strategy"] = "weighted"
        route["targets"][0].update(keys)

    return step


def _hours(**keys: Any) -> Callable[[Doc], None]:
    return lambda doc: doc["routes"][0]["targets"][0].update({"when": {"hours": "08:00-18:00", **keys}})


AZURE = {"kind": "azure", "api_key": {"env": "LAB"}, "resource": "r"}
GOOGLE = {"kind": "vertex", "api_key": {"env": "LAB"}, "project": "p"}
STEPS = {
    "providers[].keys[].name": _keys(name="another"),
    "providers[].keys[].weight": _keys(weight=5),
    "providers[].keys[].key.env": _keys(key={"env": "OTHER_LAB"}),
    "providers[].keys[].key.file": _keys(key="file"),
    "providers[].resource": _provider(**AZURE),
    "providers[].api_version": _provider(**AZURE, api_version="2024-10-21"),
    "providers[].project": _provider(**GOOGLE),
    "providers[].location": _provider(**GOOGLE, location="europe-west4"),
    "providers[].betas": _provider(kind="anthropic", api_key={"env": "LAB"}, betas=["default", "mcp-client-*"]),
    "providers[].fetches_media": _first_provider(fetches_media=True),
    "providers[].region": _provider(kind="bedrock", api_key={"env": "LAB"}, region="eu-central-1"),
    **{
        f"providers[].{name}.{way}": _signers(kind, name, way == "file")
        for kind, name in [
            ("vertex", "service_account"),
            ("bedrock", "access_key"),
            ("bedrock", "secret_key"),
            ("bedrock", "session_token"),
        ]
        for way in ("env", "file")
    },
    "providers[].name": _rename_provider,
    "routes[].targets[].weight": _weighted(weight=7),
    "routes[].targets[].canary": _weighted(canary="5%"),
    "routes[].targets[].route": lambda doc: doc["routes"][0]["targets"].append({"route": doc["routes"][1]["model"]}),
    "routes[].targets[].when.weekdays": _hours(weekdays=["mon"]),
    "routes[].targets[].when.timezone": _hours(timezone="Europe/Berlin"),
    "routes[].shadow[].deployment": _first_route(shadow=[{"deployment": "one"}]),
    "routes[].shadow[].provider": _first_route(shadow=[{"provider": "lab", "model": "z"}]),
    "routes[].shadow[].model": _first_route(shadow=[{"provider": "lab", "model": "zz"}]),
    "routes[].shadow[].overrides": _first_route(
        shadow=[{"provider": "lab", "model": "z", "overrides": {"temperature": 0.5}}]
    ),
    "routes[].shadow[].share": _first_route(shadow=[{"provider": "lab", "model": "z", "share": "7%"}]),
    "routes[].targets[].deployment": _other_deployment,
    "identity.keys[].key.file": _key_from_a_file,
    "providers[].api_key.file": _provider_key_from_a_file,
    "limits[].timezone": _zone,
    "identity.oidc[].jwks.file": _jwks_file,
    "identity.oidc[].jwks.url": _jwks_url,
    "identity.oidc[].login.client_secret.file": _client_secret_from_a_file,
    "identity.oidc[].ca": _certificates("identity", "oidc", "ca"),
    "records.export[].ca": _certificates("records", "export", "ca"),
}
"""Key → a change that takes more than one value."""
ELSEWHERE = {
    "catalogue.paths": "test_a_folder_of_models_comes_with_a_reload",
    "providers[].zone": "only checked: test_an_offline_box_takes_no_cloud_at_a_reload",
    "database.password.env": "the password as a whole needs a restart",
    "database.password.file": "the password as a whole needs a restart",
    "records.export[].cert": "tests/records/test_export_syslog.py: goes with its key",
    "records.export[].key": "tests/records/test_export_syslog.py: goes with its certificate",
}
CERTIFICATES = "identity.client_certificates[]"
"""Needs a listener with TLS: tests/e2e/test_client_certificates.py."""
