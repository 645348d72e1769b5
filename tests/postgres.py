"""The machine's real PostgreSQL: a cluster of the suite's own in a temporary folder, and databases in it.

It listens on a Unix socket (trusted) and on loopback (password, TLS where the client asks for it). Nothing of it is
shared with a server that may already run, and it goes away with the process that started it, even if that is killed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.records.engine_postgres import PostgresEngines
from appliance.records.postgres_server import PostgresServer
from appliance.settings.database_url import parse_postgres

USER = "outpost"
PASSWORD = "a password of the tests' own"
NEEDED = ("initdb", "postgres", "psql")
START_S = 60.0

_CONF = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{folder}'
max_connections = 60
shared_buffers = 16MB
dynamic_shared_memory_type = mmap
max_wal_size = 128MB
ssl = on
ssl_cert_file = '{folder}/server.crt'
ssl_key_file = '{folder}/server.key'
autovacuum = off
"""
# `fsync` stays on: the code refuses a server without it, as it could not keep what it has acknowledged.

_HBA = """
local   all all              trust
hostssl all all 127.0.0.1/32 scram-sha-256
host    all all 127.0.0.1/32 scram-sha-256
"""


class PostgresMissing(Exception):
    """The machine has no PostgreSQL; the text names the package."""


def find_binaries(env: Mapping[str, str], root: Path = Path("/usr/lib/postgresql")) -> Path:
    """The folder with the server's commands: the newest version below `root`, else one on PATH."""

    def version(folder: Path) -> float:
        try:
            return float(folder.parent.name)
        except ValueError:
            return 0.0

    places = sorted(root.glob("*/bin"), key=version, reverse=True)
    places += [Path(place) for place in env.get("PATH", "").split(os.pathsep) if place]
    for place in places:
        if all(os.access(place / name, os.X_OK) for name in NEEDED):
            return place
    raise PostgresMissing(
        f"The tests need PostgreSQL ({', '.join(NEEDED)}), below {root} or on PATH; "
        "on Debian: apt-get install postgresql"
    )


class Cluster:
    """folder: where the socket is; port: on loopback and in the socket's name; ca: what clients trust.

    Commands run as the user `postgres` when the suite runs as root, which the server refuses.
    """

    def __init__(self, binaries: Path) -> None:
        self.binaries = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="outpost-pg-", dir=_quick_place()))
        self.data = self.folder / "data"
        self.ca = self.folder / "ca.crt"
        self.port = _free_port()
        self._identity: dict[str, object] = {}
        self._process: subprocess.Popen[str] | None = None
        self._ready = threading.Event()
        self._lines: list[str] = []
        self._count = 0
        try:
            self._make()
        except BaseException:
            self.remove()
            raise

    # --- addresses ---

    def url(self, database: str, *, tcp: bool = False, **query: str) -> str:
        """The setting `database.url` for a database of this cluster; over TCP it needs PASSWORD."""
        options = "&".join(f"{name}={value}" for name, value in query.items())
        if tcp:
            return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}" + (f"?{options}" if options else "")
        return f"postgresql://{USER}@/{database}?host={self.folder}&port={self.port}" + (f"&{options}" * bool(options))

    def sql(self, statement: str, database: str = "postgres", *, user: str = "postgres") -> str:
        """Run SQL as the superuser and answer its rows, one a line, fields divided by `|`."""
        done = subprocess.run(
            [self.binaries / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", self.folder, "-p", str(self.port),
             "-U", user, "-d", database, "-f", "-"],
            input=statement, capture_output=True, text=True, check=False, env=_ENV,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.rstrip("\n")

    def new_database(self, template: str = "template0") -> str:
        """Make a database that belongs to USER; answer its name."""
        self._count += 1
        name = f"box_{self._count}"
        self.sql(f"CREATE DATABASE {name} OWNER {USER} TEMPLATE {template}")
        return name

    def drop(self, database: str) -> None:
        self.sql(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def server(self, database: str, *, backups: Path, url: str | None = None, **changed: Any) -> PostgresServer:
        """A database of this cluster as the code takes it; `url` in place of the socket's."""
        address = parse_postgres(url or self.url(database))
        password = None if address.socket else PASSWORD
        return PostgresServer(**{"url": address, "password": password, "backups": backups} | changed)

    @functools.cached_property
    def template(self) -> str:
        """A migrated, empty database to make others from; migrating takes ten times as long."""
        name = self.new_database()
        engines = PostgresEngines(self.server(name, backups=self.folder), 5.0)
        engines.prepare(time.time)
        return name

    # --- the server ---

    def start(self) -> None:
        """Return when connections are taken."""
        self._ready.clear()
        command = [str(self.binaries / "postgres"), "-D", str(self.data)]
        if shutil.which("setpriv"):
            # The server ends with this process, however that ends.
            command = ["setpriv", *self._drop_root(), "--pdeathsig", "QUIT", *command]
            identity = {}
        else:
            identity = self._identity
        self._process = subprocess.Popen(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, env=_ENV, start_new_session=True, **identity,
        )  # fmt: skip
        threading.Thread(target=self._follow, args=(self._process,), daemon=True).start()
        if not self._ready.wait(START_S) or self._process.poll() is not None:
            raise RuntimeError("PostgreSQL did not start:\n" + "\n".join(self._lines[-20:]))

    def stop(self, *, immediately: bool = False) -> None:
        """Shut down; `immediately` is a crash: nothing is flushed and the next start recovers from the log."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGQUIT if immediately else signal.SIGINT)
            process.wait(START_S)

    def remove(self) -> None:
        """Stop the server and delete its files."""
        try:
            self.stop(immediately=True)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self) -> None:
        _certificates(self.folder)
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            self._identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        self.folder.chmod(0o711)
        made = subprocess.run(
            [self.binaries / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale",
             "--no-sync", "--no-instructions", "--wal-segsize=4"],
            cwd=self.folder, capture_output=True, text=True, check=False, env=_ENV, **self._identity,
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{made.stderr}")
        conf = _CONF.format(port=self.port, folder=self.folder)
        for name, text in (("postgresql.auto.conf", conf), ("pg_hba.conf", _HBA)):
            (self.data / name).write_text(text, encoding="utf-8")
        self.start()
        self.sql(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD.replace(chr(39), chr(39) * 2)}'")

    def _drop_root(self) -> list[str]:
        if not self._identity:
            return []
        return [f"--reuid={self._identity['user']}", f"--regid={self._identity['group']}", "--clear-groups"]

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._lines.append(line.rstrip())
            del self._lines[:-200]
            if "database system is ready to accept connections" in line:
                self._ready.set()
        process.stderr.close()
        # Whoever waits for a server that could not start is told at once.
        self._ready.set()


@contextlib.contextmanager
def open_cluster() -> Iterator[Cluster]:
    """A running cluster. Raises PostgresMissing."""
    cluster = Cluster(find_binaries(os.environ))
    try:
        yield cluster
    finally:
        cluster.remove()


_ENV = {
    **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
    "LC_ALL": "C",
    "LC_MESSAGES": "C",
}


def _quick_place() -> Path | None:
    """Where files lie in memory, if there is room: the server syncs a thousand small ones at every start. A test that
    kills the server needs no disk for that; what it wrote outlives it there too."""
    place = Path("/dev/shm")
    try:
        room = shutil.disk_usage(place).free
    except OSError:
        return None
    return place if os.access(place, os.W_OK) and room > 2 << 30 else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _certificates(folder: Path) -> None:
    """An authority (ca.crt), what it signed for 127.0.0.1 (server.crt, server.key), and a stranger (other-ca.crt)."""
    now = datetime.now(UTC)

    def certify(
        name: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey, *, ca: bool
    ) -> bytes:
        names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in (name, issuer)]
        made = (
            x509.CertificateBuilder(names[1], names[0], key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if ca:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            made = made.add_extension(usage, critical=True)
        else:
            # A name, not the address: connecting by the address is then a certificate for somebody else.
            made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        return made.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority, server, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    (folder / "ca.crt").write_bytes(certify("tests", authority, "tests", authority, ca=True))
    (folder / "other-ca.crt").write_bytes(certify("other", other, "other", other, ca=True))
    (folder / "server.crt").write_bytes(certify("localhost", server, "tests", authority, ca=False))
    key = server.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.key").touch(0o600)
    (folder / "server.key").write_bytes(key)
