"""Where a PostgreSQL database is and how to get in: TLS, the password's file, and what its refusals mean."""

from __future__ import annotations

import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import OutpostError, RecordsUnavailable
from appliance.records.failures import DatabaseError, cause, sqlstate
from appliance.settings.database_url import PostgresUrl

MAX_PASSFILE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """backups: the folder for copies before a migration. external_backup: the site makes its own."""

    url: PostgresUrl
    password: str | None = field(default=None, repr=False)
    backups: Path = Path("backups")
    external_backup: bool = False

    def __str__(self) -> str:
        return f"{self.url.database} on {self.url.host}"


def tls(url: PostgresUrl) -> ssl.SSLContext | None:
    """What `sslmode` asks for; None for a plain connection. Raises DatabaseError."""
    if url.sslmode == "disable":
        return None
    try:
        context = ssl.create_default_context(cafile=url.sslrootcert and str(url.sslrootcert))
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or "unreadable"
        raise DatabaseError(
            f"database.url: the authorities in {url.sslrootcert} cannot be read ({str(reason).lower()}); "
            "sslrootcert must name a PEM file"
        ) from error
    if url.sslmode != "verify-full":
        context.check_hostname = False
    if url.sslmode == "require":
        context.verify_mode = ssl.CERT_NONE
    return context


def password_in(text: str, url: PostgresUrl) -> str | None:
    """The password of the first line of a `.pgpass` that fits: `host:port:database:user:password`, `*` fits all."""
    host = "localhost" if url.socket else url.host
    wanted = (host, str(url.port), url.database, url.user)
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        fields = _fields(line)
        if len(fields) >= 5 and all(given in ("*", want) for given, want in zip(fields[:4], wanted, strict=True)):
            return fields[4]
    return None


def read_passfile(url: PostgresUrl) -> str | None:
    """The password that `passfile` has for this address. Raises DatabaseError."""
    path = url.passfile
    if path is None:
        return None
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise DatabaseError(f"database.url: the passfile {path} is not a file")
        if mode & 0o077:
            raise DatabaseError(f"database.url: others can read the passfile {path}; run chmod 600 {path}")
        with path.open(encoding="utf-8") as file:
            found = password_in(file.read(MAX_PASSFILE_BYTES), url)
    except (OSError, UnicodeDecodeError) as error:
        reason = (getattr(error, "strerror", None) or "not text").lower()
        raise DatabaseError(f"database.url: the passfile {path} cannot be read ({reason})") from error
    if found is None:
        raise DatabaseError(
            f"database.url: the passfile {path} has no line for this address; add HOST:PORT:DATABASE:USER:PASSWORD"
        )
    return found


def refused(error: BaseException, server: PostgresServer) -> OutpostError:
    """What went wrong while getting in, with what to do about it."""
    url, reason = server.url, cause(error)
    place = f"{url.host}:{url.port}"
    origin: Any = getattr(error, "orig", None) or error
    state = sqlstate(error)
    if isinstance(origin, ssl.SSLError) or "refuses SSL" in reason or "rejected SSL" in reason:
        return DatabaseError(
            f"database.url: no TLS connection to {place} ({reason}); check the server's certificate, sslmode "
            f"({url.sslmode}) and sslrootcert"
        )
    match state:
        case "28P01" | "28000":
            return DatabaseError(
                f"database.password: the server at {place} does not let {url.user} in ({reason}); "
                "set or correct database.password, or the user in database.url"
            )
        case "3D000":
            return DatabaseError(
                f"database.url: {place} has no database {url.database}; make it: "
                f"createdb --owner {url.user} {url.database}"
            )
        case "42501":
            return no_rights(server)
    return RecordsUnavailable(
        f"The database server at {place} cannot be used right now ({reason}). Start it, or correct database.url.",
        retry_after_s=1.0,
    )


def no_rights(server: PostgresServer) -> DatabaseError:
    user, database = server.url.user, server.url.database
    return DatabaseError(
        f"database.url: {user} may not make tables in {database}; run ALTER DATABASE {database} OWNER TO {user}"
    )


def _fields(line: str) -> list[str]:
    """Divided at `:`, where `\\:` and `\\\\` stand for the characters themselves."""
    fields, current, escaped = [], "", False
    for char in line:
        if escaped or char not in "\\:":
            current, escaped = current + char, False
        elif char == "\\":
            escaped = True
        else:
            fields.append(current)
            current = ""
    return [*fields, current]
