"""Client certificates: whom they are taken for. Over the dicts of `getpeercert()`, and over real TLS."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.errors import PermissionDenied, Unauthenticated
from appliance.identity.certificates import Subject, names_of, require, subject_of

LATER = "Jan  1 00:00:00 2100 GMT"
NOW = 1_800_000_000.0


def certificate(*cn: str, san: tuple[tuple[str, str], ...] = (), until: Any = LATER) -> dict[str, Any]:
    subject = ((("organizationName", "Lab"),), *(((("commonName", name),)) for name in cn))
    return {"subject": subject, "subjectAltName": san, "notAfter": until}


CRON = Subject("cron", "common_name", "cron", "member")
HOST = Subject("host", "dns", "Agent.example.com", "operator")
MESH = Subject("mesh", "uri", "spiffe://example.com/agent", "member")
ANN = Subject("ann", "email", "ann@example.com", "admin")
ALL = (CRON, HOST, MESH, ANN)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (certificate("cron"), CRON),
        (certificate(san=(("DNS", "agent.EXAMPLE.com"),)), HOST),
        (certificate("x", san=(("DNS", "other"), ("URI", "spiffe://example.com/agent"))), MESH),
        (certificate(san=(("email", "ann@example.com"),)), ANN),
        (certificate("cron", san=(("DNS", "agent.example.com"),)), CRON),
    ],
)
def test_whose_it_is(shown: dict[str, Any], expected: Subject) -> None:
    found, until = subject_of(shown, ALL, NOW)
    assert found is expected
    assert until == 4102444800.0


@pytest.mark.parametrize(
    "shown",
    [
        certificate(),
        certificate("Cron"),
        certificate("cron "),
        certificate("cron", "admin"),
        certificate("cron\0.evil"),
        certificate("agent.example.com"),
        certificate(san=(("DNS", "cron"),)),
        certificate(san=(("DNS", "*.example.com"),)),
        certificate(san=(("DNS", "agent.example.com.evil"),)),
        certificate(san=(("email", "ANN@example.com"),)),
        certificate(san=(("URI", "spiffe://example.com/agent/x"),)),
        certificate(san=(("IP Address", "127.0.0.1"), ("DirName", "cron"))),
        {"notAfter": LATER},
    ],
    ids=lambda shown: str(shown)[:60],
)
def test_a_name_that_only_looks_like_one_does_not_count(shown: dict[str, Any]) -> None:
    with pytest.raises(PermissionDenied, match="has no entry"):
        subject_of(shown, ALL, NOW)


@pytest.mark.parametrize("until", ["Jan  1 00:00:00 2020 GMT", "", "soon", None])
def test_a_certificate_that_has_ended(until: Any) -> None:
    with pytest.raises(Unauthenticated, match="expired"):
        subject_of(certificate("cron", until=until), ALL, NOW)


def test_several_common_names_are_none() -> None:
    assert names_of(certificate("a", "b"))["common_name"] == frozenset()


# --- over TLS ---


class Authority:
    """Issues certificates as strict checkers want them."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.file = folder / f"{name}.crt"
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        made = self._builder(self._name, self._key)
        made = made.add_extension(x509.BasicConstraints(True, None), critical=True)
        self.file.write_bytes(self._signed(made.add_extension(usage, critical=True)))

    def issue(self, name: str, usage: x509.ObjectIdentifier, *, san: list[x509.GeneralName], days: int = 1) -> Path:
        """A file with a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        built = (
            self._builder(subject, key, days)
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(san or [x509.DNSName(f"{name}.test")]), critical=False)
        )
        path = self._folder / f"{name}-{days}.pem"
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(self._signed(built) + secret)
        return path

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int = 1) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=10))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )

    def _signed(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> asyncio.Runner:
    return asyncio.Runner(loop_factory=uvloop.new_event_loop if request.param == "uvloop" else None)


def test_certificates_over_tls(runner: asyncio.Runner, tmp_path: Path) -> None:
    """What a listener sees of the clients that come with the right, a wrong, an old and no certificate."""
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    server_file = ours.issue("server", ExtendedKeyUsageOID.SERVER_AUTH, san=[x509.DNSName("localhost")])
    uri = x509.UniformResourceIdentifier("spiffe://example.com/agent")
    right = ours.issue("agent", ExtendedKeyUsageOID.CLIENT_AUTH, san=[uri])
    stranger = theirs.issue("agent2", ExtendedKeyUsageOID.CLIENT_AUTH, san=[uri])
    old = ours.issue("agent", ExtendedKeyUsageOID.CLIENT_AUTH, san=[uri], days=-1)
    for_servers = ours.issue("agent3", ExtendedKeyUsageOID.SERVER_AUTH, san=[uri])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server_file)
    require(context, ours.file)

    async def main() -> list[Any]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            shown = writer.get_extra_info("peercert")
            if not shown:
                writer.write(b"none\n")
            else:
                subject, _ = subject_of(shown, ALL, time.time())
                writer.write(subject.name.encode() + b"\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]

        async def ask(file: Path | None) -> Any:
            client = ssl.create_default_context(cafile=ours.file)
            if file is not None:
                client.load_cert_chain(file)
            try:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=client, server_hostname="localhost"
                )
                line = await reader.readline()
                writer.close()
            except OSError:  # ssl.SSLError is one
                return "refused"
            return line.decode().strip() or "refused"

        async with server:
            return [await ask(file) for file in (right, None, stranger, old, for_servers)]

    with runner:
        assert runner.run(main()) == ["mesh", "none", "refused", "refused", "refused"]
