"""Mutual TLS on both listeners of a running gateway, with certificates that a real library issues."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.e2e.people import Office, client, open_office
from tests.identity.test_certificates import Authority

pytestmark = pytest.mark.timeout(240)
URI = "spiffe://example.com/scheduler"


@dataclass
class House:
    office: Office
    ours: Authority
    theirs: Authority

    def trust(self, file: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ours.file)
        if file is not None:
            context.load_cert_chain(file)
        return context

    def shown(self, name: str, *, san: list[x509.GeneralName] | None = None, days: int = 1) -> httpx.Client:
        """A client with a certificate of ours."""
        return client(self.trust(self.ours.issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, san=san or [], days=days)))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("mtls")
    ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
    here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    server = ours.issue("server", ExtendedKeyUsageOID.SERVER_AUTH, san=[here])
    identity = {
        "client_ca": str(ours.file),
        "client_certificates": [
            {"name": "scheduler", "uri": URI, "role": "member", "routes": ["ok"], "priority": "batch"},
            {"name": "agent", "dns": "agent.example.com", "role": "operator"},
            {"name": "away", "common_name": "away", "role": "operator", "addresses": ["192.0.2.0/24"]},
        ],
    }
    trust = ssl.create_default_context(cafile=ours.file)
    tls = {"tls": {"cert": str(server), "key": str(server)}}
    with open_office(folder, trust=trust, server=tls, identity=identity) as office:
        assert office.gateway.url.startswith("https://")
        assert office.gateway.operator_url.startswith("https://")
        yield House(office, ours, theirs)


def ask(house: House, http: httpx.Client, model: str = "ok", **headers: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
    return http.post(f"{house.office.gateway.url}/v1/chat/completions", json=body, headers=headers)


def me(house: House, http: httpx.Client) -> httpx.Response:
    return http.get(f"{house.office.gateway.operator_url}/admin/v1/me")


def test_a_certificate_is_a_credential_on_both_listeners(house: House) -> None:
    with house.shown("scheduler", san=[x509.UniformResourceIdentifier(URI)]) as http:
        for _ in range(2):
            answer = ask(house, http)
            assert answer.status_code == 200, answer.text
        row = house.office.row(answer)
        assert (row["key_id"], row["key_name"], row["priority"]) == ("mtls", "scheduler", "batch")
        user = house.office.data("GET", f"/users/{row['user_id']}")
        assert (user["name"], user["role"], user["issuer"]) == ("scheduler", "member", "client-certificate")
        assert ask(house, http, "far").status_code == 404, "the entry is for one route"
        assert me(house, http).json()["data"]["role"] == "member"
        refused = http.get(f"{house.office.gateway.operator_url}/admin/v1/status")
        assert refused.status_code == 403
    with house.shown("x", san=[x509.DNSName("Agent.Example.com")]) as http:
        assert http.get(f"{house.office.gateway.operator_url}/admin/v1/status").status_code == 200


def test_a_genuine_certificate_without_an_entry_opens_nothing(house: House) -> None:
    for http in (house.shown("scheduler"), house.shown("agent.example.com"), house.shown("Away")):
        with http:
            for answer in (ask(house, http), me(house, http)):
                assert answer.status_code == 403
                assert "identity.client_certificates" in answer.text


def test_a_key_counts_before_the_certificate(house: House) -> None:
    with house.shown("scheduler2", san=[x509.UniformResourceIdentifier(URI)]) as http:
        key = {"Authorization": f"Bearer {house.office.gateway.user_key}"}
        assert house.office.row(ask(house, http, "far", **key))["key_name"] == "contract-user"
        wrong = ask(house, http, Authorization="Bearer op-wrong")
        assert wrong.status_code == 401, "a wrong key is not made good by a certificate"


def test_without_a_certificate_a_key_is_needed(house: House) -> None:
    with client(house.trust()) as http:
        assert (ask(house, http).status_code, me(house, http).status_code) == (401, 401)
        assert house.office.chat(house.office.gateway.user_key).status_code == 200


def test_addresses_and_the_directory_count_too(house: House) -> None:
    with house.shown("away") as http:
        assert (ask(house, http).status_code, me(house, http).status_code) == (403, 403)
    with house.shown("y", san=[x509.DNSName("agent.example.com")]) as http:
        user = me(house, http).json()["data"]["user"]
        for disabled in (True, False):
            house.office.data("PATCH", f"/users/{user}", {"disabled": disabled})
            # The same connection: what was found at its handshake is not what counts.
            assert me(house, http).status_code == (401 if disabled else 200)
            assert ask(house, http).status_code == (401 if disabled else 200)


@pytest.mark.parametrize("kind", ["of a stranger", "ended", "for servers"])
def test_certificates_that_are_not_genuine_are_cut_off(house: House, kind: str) -> None:
    san: list[x509.GeneralName] = [x509.UniformResourceIdentifier(URI)]
    if kind == "of a stranger":
        file = house.theirs.issue("scheduler3", ExtendedKeyUsageOID.CLIENT_AUTH, san=san)
    elif kind == "ended":
        file = house.ours.issue("scheduler4", ExtendedKeyUsageOID.CLIENT_AUTH, san=san, days=-1)
    else:
        file = house.ours.issue("scheduler5", ExtendedKeyUsageOID.SERVER_AUTH, san=san)
    with client(house.trust(file)) as http:
        for question in (ask, me):
            with pytest.raises(httpx.TransportError):
                question(house, http)
    assert house.office.chat(house.office.gateway.user_key).status_code == 200


def test_whoever_speaks_no_tls_gets_nothing(house: House) -> None:
    with client() as http, pytest.raises(httpx.TransportError):
        http.get(house.office.gateway.url.replace("https", "http") + "/healthz")
