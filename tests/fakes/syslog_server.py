"""A syslog receiver on loopback that can break off wherever a test wants it to."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import queue
import socket
import ssl
import threading
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def parse_frames(data: bytes) -> tuple[list[bytes], bytes]:
    """Whole messages of counted octets, and what is left of one that is not whole."""
    messages = []
    at = 0
    while (space := data.find(b" ", at, at + 10)) > 0 and data[at:space].isdigit():
        end = space + 1 + int(data[at:space])
        if end > len(data):
            break
        messages.append(data[space + 1 : end])
        at = end
    return messages, data[at:]


class SyslogServer:
    """Takes one connection after the other. `plan`: for each the number of bytes after which it is broken off; when the
    plan is used up, connections are read to their end.

    orderly: end a connection that was read to its end as the standards want it; else leave it open until the test ends.
    """

    def __init__(
        self, plan: list[int] | None = None, *, tls: ssl.SSLContext | None = None, orderly: bool = True
    ) -> None:
        self._plan = list(plan or [])
        self._tls = tls
        self._orderly = orderly
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.received: queue.Queue[bytes] = queue.Queue()
        """What each connection brought, in order."""
        self.whole: list[bytes] = []
        """Every whole message, in the order of arrival."""
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            # A thread that waits in accept is not woken by close alone.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for each in self._open:
            each.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            stop = self._plan.pop(0) if self._plan else None
            self._take(connection, stop)

    def _take(self, connection: socket.socket, stop: int | None) -> None:
        data = bytearray()
        try:
            connection.settimeout(10)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            while stop is None or len(data) < stop:
                piece = connection.recv(65536 if stop is None else stop - len(data))
                if not piece:
                    break
                data += piece
            if stop is None and self._orderly and isinstance(connection, ssl.SSLSocket):
                connection = connection.unwrap()
        except OSError:
            pass
        finally:
            self.whole += parse_frames(bytes(data))[0]
            if stop is None and not self._orderly:
                self._open.append(connection)
            else:
                connection.close()
            self.received.put(bytes(data))


def make_certificates(folder: Path, *, host: str = "127.0.0.1") -> tuple[Path, Path, Path]:
    """An authority, and a certificate for `host` with its key: PEM files."""
    now = datetime.datetime.now(datetime.UTC)
    folder.mkdir(parents=True, exist_ok=True)

    def build(name: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = build("Test CA", "Test CA", root).add_extension(x509.BasicConstraints(True, 0), True)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    certificate = build(host, "Test CA", leaf).add_extension(names, False)
    paths = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(authority.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(certificate.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    paths[2].write_bytes(
        leaf.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def server_context(cert: Path, key: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context
