"""Settings of identity providers, client certificates and the limits of fixed keys: what is refused, with its cure."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from appliance.settings import Settings, SettingsError, from_mapping
from appliance.settings.checks_people import on_site, warn
from appliance.settings.machine_people import check_machine, warn_machine
from appliance.settings.render import as_yaml
from appliance.settings.shape import dotted

CORP = {"name": "corp", "issuer": "https://login.example.com", "audience": "outpost", "default_role": "member"}
LOGIN = {"client_id": "console", "redirect_base": "https://outpost.example.com"}
TLS = {"server": {"tls": {"cert": "c.pem", "key": "k.pem"}}}
AGENT = {"name": "agent", "dns": "agent.example.com"}


def key(**changes: Any) -> dict[str, Any]:
    return {"identity": {"keys": [{"name": "ci", "key": {"env": "CI"}, **changes}]}}


def oidc(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"identity": {"oidc": list(entries)}}


def login(**changes: Any) -> dict[str, Any]:
    return oidc({**CORP, "login": {**LOGIN, **changes}})


def faults(data: dict[str, Any]) -> list[str]:
    try:
        from_mapping(data)
    except SettingsError as error:
        assert all(problem.cure for problem in error.problems)
        return [f"{problem.key}: {problem.message} – {problem.cure}" for problem in error.problems]
    return []


@pytest.mark.parametrize(
    "data",
    [
        key(organization="acme", team="lab", zones=["on_box"], addresses=["10.0.0.0/8", "::1"], priority="batch"),
        key(routes=["smollm2-135m-instruct"], models=["smollm2-135m-instruct"]),
        oidc(CORP),
        oidc({**CORP, "audience": ["a", "b"], "jwks": {"file": "k.json"}, "roles": {"a": "owner"}}),
        oidc({**CORP, "issuer": "http://localhost:9000"}, {**CORP, "name": "b"}),
        oidc({**CORP, "issuer": "http://idp.lan", "jwks": {"file": "k.json"}}),
        oidc({**CORP, "issuer": "http://idp.lan", "jwks": {"url": "https://idp.lan/keys"}}),
        login(),
        login(redirect_base="http://127.0.0.1:8081"),
        {**TLS, "identity": {"client_ca": "ca.pem", "client_certificates": [AGENT]}},
    ],
    ids=str,
)
def test_what_is_allowed(data: dict[str, Any]) -> None:
    assert faults(data) == []
    settings = from_mapping(data)
    assert "identity" in as_yaml(settings)


def test_an_issuer_is_kept_to_the_letter() -> None:
    assert from_mapping(oidc({**CORP, "issuer": "https://login.example.com/"})).identity.oidc[0].issuer.endswith("/")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (key(addresses=["10.0.0.1/8"]), "addresses[0]: '10.0.0.1/8' has bits set beyond its prefix – write 10.0.0.0/8"),
        (key(addresses=["ten"]), "addresses[0]: expected an address or a network, found 'ten'"),
        (key(addresses=[]), "keys[0].addresses: is empty, so that nothing would be allowed – add an entry"),
        (key(routes=["chat"]), "keys[0].routes[0]: there is no route 'chat' – known are:"),
        (key(routes=["smollm2-135m-instruc"]), "did you mean smollm2-135m-instruct?"),
        (key(models=["lab/x"]), "keys[0].models[0]: no route leads to 'lab/x'"),
        (key(models=["all-minilm-l6-v2"], zones=["cloud"]), "keys[0].zones: none of the models is in these zones"),
        (key(zones=["moon"]), "keys[0].zones[0]: expected one of on_box, on_prem, cloud, found 'moon'"),
        (key(priority="urgent"), "keys[0].priority: expected one of interactive, normal, batch"),
        (oidc(CORP, {**CORP, "issuer": "https://b"}), "oidc[1].name: 'corp' stands here twice"),
        (oidc(CORP, {**CORP, "name": "b"}), "oidc[1].issuer: 'https://login.example.com' stands here twice"),
        (oidc({**CORP, "name": "x" * 49}), "oidc[0].name: longer than 48 characters"),
        (key(name="x" * 59), "keys[0].name: longer than 58 characters"),
        (
            oidc({**CORP, "issuer": "login.example.com"}),
            "oidc[0].issuer: 'login.example.com' is not an http(s) address",
        ),
        (oidc({**CORP, "issuer": "https://u:p@x"}), "oidc[0].issuer: credentials do not belong into the address"),
        (oidc({**CORP, "issuer": "http://login.example.com"}), "oidc[0].issuer: plain http can be changed on its way"),
        (oidc({**CORP, "jwks": {"url": "http://x.example.com"}}), "oidc[0].jwks.url: plain http can be changed"),
        (oidc({**CORP, "jwks": {}}), "oidc[0].jwks: needs either file or url"),
        (oidc({**CORP, "jwks": {"file": "a", "url": "https://x"}}), "oidc[0].jwks: needs either file or url"),
        (oidc({**CORP, "audience": []}), "oidc[0].audience: is empty"),
        (oidc({**CORP, "algorithms": ["none"]}), "oidc[0].algorithms[0]: expected one of RS256"),
        (oidc({**CORP, "algorithms": ["HS256"]}), "oidc[0].algorithms[0]: expected one of RS256"),
        (oidc({**CORP, "algorithms": []}), "oidc[0].algorithms: is empty"),
        (oidc({**CORP, "algorithms": ["RS256", "RS256"]}), "oidc[0].algorithms[1]: 'RS256' stands here twice"),
        (oidc({**CORP, "default_role": "owner"}), "oidc[0].default_role: expected one of operator, auditor, member"),
        (oidc({**CORP, "roles": {"a": "boss"}}), "oidc[0].roles: 'a' leads to 'boss', which is no role"),
        (oidc({**CORP, "roles": ["a"]}), "oidc[0].roles: expected a mapping from a claim's value to a role"),
        (oidc({**CORP, "claims": {"role": "a b"}}), "oidc[0].claims.role: 'a b' is not the name of a claim"),
        (oidc({**CORP, "skew": "10m"}), "oidc[0].skew: must be at most 5m"),
        (login(scopes=["profile"]), "login.scopes: openid is missing"),
        (login(scopes=["openid", "email profile"]), "login.scopes[1]: is not one scope"),
        (login(redirect_base="https://x.example.com/app"), "login.redirect_base: has a path"),
        (login(redirect_base="http://x.example.com"), "login.redirect_base: plain http can be changed"),
        (login(client_secret="hunter2"), "login.client_secret: a secret is not written into the file"),
        (login(token_endpoint="http://x.example.com"), "login.token_endpoint: plain http"),
        ({"identity": {"client_ca": "ca.pem"}}, "identity.client_ca: clients show certificates only over TLS"),
        (
            {**TLS, "identity": {"client_certificates": [AGENT]}},
            "client_certificates: clients are asked for no certific",
        ),
        (
            {**TLS, "identity": {"client_ca": "ca", "client_certificates": [AGENT, AGENT]}},
            "client_certificates[1].name: 'agent' stands here twice",
        ),
        (
            {**TLS, "identity": {"client_ca": "ca", "client_certificates": [{"name": "x"}]}},
            "client_certificates[0]: needs exactly one of common_name, dns, uri and email",
        ),
        (
            {**TLS, "identity": {"client_ca": "ca", "client_certificates": [{**AGENT, "uri": "spiffe://x"}]}},
            "client_certificates[0]: needs exactly one of common_name, dns, uri and email",
        ),
        (
            {**TLS, "identity": {"client_ca": "ca", "client_certificates": [{**AGENT, "routes": ["x"]}]}},
            "client_certificates[0].routes[0]: there is no route 'x'",
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_what_is_refused(data: dict[str, Any], expected: str) -> None:
    found = faults(data)
    assert len(found) == 1
    assert expected in found[0]
    assert "hunter2" not in found[0]


def warnings(data: dict[str, Any]) -> list[str]:
    return [f"{dotted(found.path)}: {found.message}" for found in warn(from_mapping(data))]


def test_offline_with_keys_from_elsewhere_is_only_a_warning() -> None:
    offline = {"offline": True}
    assert warnings({**offline, **oidc(CORP)}) == [
        "identity.oidc[0].jwks: offline is true, and the keys of corp come from login.example.com, which looks like "
        "another site"
    ]
    for entry in ({**CORP, "issuer": "https://idp.lan"}, {**CORP, "jwks": {"file": "k.json"}}):
        assert warnings({**offline, **oidc(entry)}) == []
    assert warnings(oidc(CORP)) == []


def test_what_is_probably_not_meant() -> None:
    nobody = {name: value for name, value in CORP.items() if name != "default_role"}
    assert warnings(oidc(nobody)) == ["identity.oidc[0].default_role: nobody from corp gets a role"]
    assert "no claim is named" in warnings(oidc({**CORP, "roles": {"a": "admin"}}))[0]
    assert "lets anybody in" in warnings({**TLS, "identity": {"client_ca": "ca.pem"}})[0]


@pytest.mark.parametrize(
    ("host", "site"),
    [
        ("10.1.2.3", True), ("192.168.0.1", True), ("127.0.0.1", True), ("::1", True), ("fd00::1", True),
        ("8.8.8.8", False), ("2606:4700::1", False), ("idp", True), ("idp.lan", True), ("login.corp", True),
        ("login.example.com", False), ("lan.example.com", False),
    ],
)  # fmt: skip
def test_what_looks_like_the_site(host: str, site: bool) -> None:
    assert on_site(host) is site


# --- on this machine ---


def authority(path: Path, *, ca: bool = True) -> Path:
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .sign(secret, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


def on_machine(settings: Settings, env: dict[str, str]) -> list[str]:
    return [f"{dotted(found.path)}: {found.message}" for found in check_machine(settings, env)]


def test_what_must_be_on_the_machine(tmp_path: Path) -> None:
    keys, ca = tmp_path / "keys.json", tmp_path / "ca.pem"
    secret = {"client_secret": {"env": "SECRET"}}
    entry = {**CORP, "jwks": {"file": str(keys)}, "ca": str(ca), "login": {**LOGIN, **secret}}
    settings = from_mapping(
        {**TLS, "identity": {"oidc": [entry], "client_ca": str(ca), "client_certificates": [AGENT]}}
    )
    assert on_machine(settings, {}) == [
        f"identity.oidc[0].jwks.file: {keys} cannot be read (no such file or directory)",
        f"identity.oidc[0].ca: {ca} cannot be read (no such file or directory)",
        "identity.oidc[0].login.client_secret: the environment variable SECRET is not set",
        f"identity.client_ca: {ca} cannot be read (no such file or directory)",
    ]
    keys.write_bytes(b" " * (512 * 1024 + 1))
    ca.write_text("no certificate")
    assert on_machine(settings, {"SECRET": "x"}) == [
        f"identity.oidc[0].jwks.file: {keys} is larger than a set of keys can be",
        f"identity.oidc[0].ca: {ca} holds no certificate of an authority",
        f"identity.client_ca: {ca} holds no certificate of an authority",
    ]
    keys.write_text("{}")
    assert on_machine(settings, {"SECRET": "x"})[0].endswith("of an authority")
    authority(ca, ca=False)
    assert len(on_machine(settings, {"SECRET": "x"})) == 2
    authority(ca)
    assert on_machine(settings, {"SECRET": "x"}) == []


def test_a_secret_that_all_may_read(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("x")
    settings = from_mapping(login(client_secret={"file": str(path)}))
    path.chmod(0o644)
    assert [dotted(found.path) for found in warn_machine(settings)] == ["identity.oidc[0].login.client_secret.file"]
    path.chmod(0o600)
    assert list(warn_machine(settings)) == []
