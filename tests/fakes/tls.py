"""TLS between a server of the tests and its client."""

from __future__ import annotations

import ssl
from pathlib import Path

_CERTIFICATES = Path(__file__).parents[1] / "settings" / "data"


def server_side() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_CERTIFICATES / "cert.pem", _CERTIFICATES / "key.pem")
    return context


def client_side() -> ssl.SSLContext:
    """Trusts that server, at whatever address."""
    context = ssl.create_default_context(cafile=_CERTIFICATES / "cert.pem")
    context.check_hostname = False
    return context
