"""`database.url`: a SQLite file or a PostgreSQL server. Pure.

A PostgreSQL address has libpq's form. It never holds a password, since messages show addresses, and a parameter that
would not be honoured is refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pydantic import BeforeValidator, WithJsonSchema

from appliance.settings.units import BadForm
from appliance.settings.values import Form, refuse

SslMode = Literal["disable", "require", "verify-ca", "verify-full"]

SQLITE = "sqlite+aiosqlite:///"
SOCKET_FOLDER = "/var/run/postgresql"
"""Where Debian's and Red Hat's servers keep their socket; stands in when an address names no host."""

_SCHEMES = frozenset({"postgresql", "postgres", "postgresql+asyncpg"})
_PARAMETERS = ("host", "port", "sslmode", "sslrootcert", "passfile")
_MODES: tuple[SslMode, ...] = ("disable", "require", "verify-ca", "verify-full")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?", re.ASCII)
_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|::1", re.ASCII)
_FORM = "postgresql://USER@HOST/DATABASE"
_CURE = f'write "sqlite", {SQLITE}PATH or {_FORM}'


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """Where a PostgreSQL database is. `host` is a name, an address, or the absolute folder of a Unix socket.

    sslrootcert: PEM file with the authorities that are trusted, None for the system's own.
    passfile: a file in the form of libpq's `.pgpass`.
    """

    user: str
    host: str
    port: int
    database: str
    sslmode: SslMode = "disable"
    sslrootcert: Path | None = None
    passfile: Path | None = None

    @property
    def socket(self) -> bool:
        return self.host.startswith("/")

    def __str__(self) -> str:
        options = {
            "host": self.host if self.socket else None,
            "port": str(self.port) if self.socket and self.port != 5432 else None,
            "sslmode": None if self.socket else self.sslmode,
            "sslrootcert": self.sslrootcert and str(self.sslrootcert),
            "passfile": self.passfile and str(self.passfile),
        }
        query = "&".join(f"{name}={quote(text, safe='/')}" for name, text in options.items() if text)
        host = "" if self.socket else f"[{self.host}]" if ":" in self.host else self.host
        place = f"{host}:{self.port}" if not self.socket and self.port != 5432 else host
        user, database = quote(self.user, safe=""), quote(self.database, safe="")
        return f"postgresql://{user}@{place}/{database}" + (f"?{query}" if query else "")


def is_postgres(url: str) -> bool:
    return url.split(":", 1)[0] in _SCHEMES


def parse_postgres(text: str) -> PostgresUrl:
    """`postgresql://USER@HOST[:PORT]/DATABASE[?NAME=VALUE&…]`. Raises BadForm, which never repeats the address."""
    try:
        parts = urlsplit(text)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise BadForm("not a valid address", f"write {_FORM}") from None
    credentials, at, place = parts.netloc.rpartition("@")
    if ":" in credentials or any(name == "password" for name, _ in pairs):
        raise BadForm(
            "a password does not belong into the address",
            "remove it and use database.password: {env: NAME} or {file: PATH}; replace it if it was a real one",
        )
    user, database = unquote(credentials), unquote(parts.path.removeprefix("/"))
    if not at or not user:
        raise BadForm("names no user", f"write {_FORM}")
    if not database or "/" in database:
        raise BadForm("names no database", f"write {_FORM}")
    if parts.fragment:
        raise BadForm("'#' does not belong into the address", "write %23 if a name has it")
    options = _options(pairs)
    host, port = _place(place, options)
    if any(ord(char) < 32 or ord(char) == 127 for char in user + database + host + "".join(options.values())):
        raise BadForm("holds a control character", f"write {_FORM}")
    return PostgresUrl(
        user=user,
        host=host,
        port=port,
        database=database,
        sslmode=_sslmode(host, options),
        sslrootcert=_file("sslrootcert", options),
        passfile=_file("passfile", options),
    )


def _options(pairs: list[tuple[str, str]]) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in pairs:
        if name not in _PARAMETERS:
            shown = name if re.fullmatch(r"[a-z_]{1,40}", name) else "a parameter"
            raise BadForm(f"{shown} is not supported in the address", f"remove it; there are {', '.join(_PARAMETERS)}")
        if name in options:
            raise BadForm(f"{name} is given twice", "leave one of them")
        options[name] = value
    return options


def _place(place: str, options: dict[str, str]) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(\d*))?", place)
    if found is None:
        raise BadForm("host and port cannot be told apart", "put IPv6 in brackets, e.g. [::1]:5432")
    host, port_text = unquote(found[1]).removeprefix("[").removesuffix("]"), found[2] or ""
    if (host and "host" in options) or (port_text and "port" in options):
        raise BadForm("host or port is given twice", "leave one of them")
    host = host or options.get("host", "") or SOCKET_FOLDER
    port_text = port_text or options.get("port", "") or "5432"
    if "," in host:
        raise BadForm("names several hosts", "name one; a failover belongs behind one address")
    if not host.startswith("/") and not _HOST.fullmatch(host):
        raise BadForm("the host is not a name, an address or the absolute folder of a socket", f"write {_FORM}")
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and 0 < int(port_text) <= 65535):
        raise BadForm("the port is not a number from 1 to 65535", "leave it out for 5432")
    return host, int(port_text)


def _sslmode(host: str, options: dict[str, str]) -> SslMode:
    mode = options.get("sslmode")
    if host.startswith("/"):
        if mode not in (None, "disable") or "sslrootcert" in options:
            raise BadForm("a Unix socket has no TLS", "remove sslmode and sslrootcert")
        return "disable"
    if mode is None:
        # Loopback stays on the machine; elsewhere nobody should be in between without being noticed.
        return "disable" if _LOOPBACK.fullmatch(host) and "sslrootcert" not in options else "verify-full"
    if mode in ("allow", "prefer"):
        raise BadForm(f"sslmode={mode} may go on without TLS unnoticed", f"write one of {', '.join(_MODES)}")
    if mode not in _MODES:
        raise BadForm("sslmode is unknown", f"write one of {', '.join(_MODES)}")
    if mode == "disable" and "sslrootcert" in options:
        raise BadForm("sslrootcert has no use with sslmode=disable", "remove one of them")
    # With authorities named, `require` checks the certificate against them, as libpq does.
    return "verify-ca" if mode == "require" and "sslrootcert" in options else mode


def _file(name: str, options: dict[str, str]) -> Path | None:
    text = options.get(name)
    if text is None:
        return None
    if not text.startswith("/"):
        raise BadForm(f"{name} is not an absolute path", f"write {name}=/PATH")
    return Path(text)


DATABASE = Form("a database address", "sqlite")


def _read(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if text == "sqlite":
        return "sqlite"
    if is_postgres(text):
        try:
            return str(parse_postgres(text))
        except BadForm as bad:
            raise refuse(bad.message, bad.cure) from None
    if text.startswith(("postgres", "mysql", "mariadb")):
        raise refuse("this kind of database or driver is not supported", _CURE)
    path = text.removeprefix(SQLITE)
    if text == path or not path or ":memory:" in path or any(char in path for char in "?#\0"):
        raise refuse("expected a SQLite database in a file, or a PostgreSQL server", _CURE)
    return str(text)


DatabaseUrl = Annotated[
    str,
    BeforeValidator(_read),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": rf"^(sqlite|{re.escape(SQLITE)}.+|postgres(ql(\+asyncpg)?)?://[^:@/]+@.*)$",
            "examples": ["sqlite", "postgresql://outpost@db.example/outpost?sslmode=verify-full"],
        }
    ),
    DATABASE,
]
"""As it was written, a PostgreSQL address in its full form (`parse_postgres`)."""
