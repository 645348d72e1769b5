"""What a replica is started from, where its socket may live, and how two sets of specs differ. No processes here."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runtimes.engine import Engine

MAX_SOCKET_PATH_BYTES = 99
"""The kernel's sun_path holds 108 bytes on Linux and 104 elsewhere; some libraries keep a few for themselves."""
MAX_SOCKET_NAME_BYTES = 32

ReplicaKey = tuple[str, int]
"""Deployment and index."""


class SpecError(ValueError):
    """A spec, or the place for its socket, that cannot work. The message names it and the cure."""


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One replica: the program that runs it and how it is reached.

    `connect` opens the engine's socket; it may raise OSError or EngineLost as long as nobody listens and is then
    called again. `warm_up` asks for a first answer and raises if it does not come. Neither is compared.
    Unlike `env`, the gateway's own environment reaches the engine only by allow-list.
    """

    deployment: str
    index: int
    argv: list[str]
    env: dict[str, str]
    socket_path: Path
    log_path: Path
    connect: Callable[[Path], Awaitable[Engine]] = field(compare=False)
    warm_up: Callable[[Engine], Awaitable[None]] = field(compare=False)
    start_timeout_s: float = 120.0
    """Longest silence in the log while it is not ready yet."""
    drain_timeout_s: float = 30.0

    @property
    def key(self) -> ReplicaKey:
        return self.deployment, self.index

    @property
    def name(self) -> str:
        return f"{self.deployment}/{self.index}"

    def same_process(self, other: ReplicaSpec) -> bool:
        """Whether a process started from one serves as one started from the other."""
        return (self.argv, self.env, self.socket_path, self.log_path) == (
            other.argv, other.env, other.socket_path, other.log_path,
        )  # fmt: skip


def check(specs: Iterable[ReplicaSpec]) -> dict[ReplicaKey, ReplicaSpec]:
    """The specs by key. Raises SpecError for doubles, empty programs and sockets that cannot be bound."""
    found: dict[ReplicaKey, ReplicaSpec] = {}
    sockets: dict[Path, str] = {}
    for spec in specs:
        if spec.key in found:
            raise SpecError(f"replica {spec.name} is given twice: give each replica of a deployment its own index")
        if not spec.argv:
            raise SpecError(f"replica {spec.name} has no program to run: argv is empty")
        length = len(os.fsencode(spec.socket_path))
        if length > MAX_SOCKET_PATH_BYTES:
            raise SpecError(
                f"replica {spec.name}: the socket path {spec.socket_path} has {length} bytes and the system allows "
                f"{MAX_SOCKET_PATH_BYTES}: choose a shorter directory"
            )
        if spec.socket_path in sockets:
            raise SpecError(f"replicas {sockets[spec.socket_path]} and {spec.name} share the socket {spec.socket_path}")
        found[spec.key] = spec
        sockets[spec.socket_path] = spec.name
    return found


# --- places ---------------------------------------------------------------------------------------


def run_directory(data_dir: Path, env: Mapping[str, str] = os.environ) -> Path:
    """A private (0700) directory whose sockets have paths that are short enough; made if it is not there.

    DATA_DIR/run, unless that is too long: then a directory in XDG_RUNTIME_DIR or the temporary directory, named
    after DATA_DIR so that two gateways never meet. Raises SpecError when it belongs to somebody else.
    """
    room = MAX_SOCKET_PATH_BYTES - MAX_SOCKET_NAME_BYTES - 1
    own = data_dir.absolute() / "run"
    digest = hashlib.sha256(os.fsencode(own)).hexdigest()[:12]
    short = f"outpost-{os.getuid()}-{digest}"
    places = [own, *(Path(d) / short for d in (env.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp") if d)]
    for place in places:
        if len(os.fsencode(place)) <= room and (place == own or place.parent.is_dir()):
            make_private(place)
            return place
    raise SpecError(f"no directory for sockets is short enough (at most {room} bytes); set XDG_RUNTIME_DIR to one")


def make_private(directory: Path) -> None:
    """Make sure that only this user can reach into `directory`. Raises SpecError.

    In a shared place such as /tmp another user may have made the name first, so what is there is not trusted.
    """
    with contextlib.suppress(FileExistsError):
        directory.mkdir(parents=True, mode=0o700)
    try:
        # O_NOFOLLOW and the descriptor: what was looked at is what is changed.
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SpecError(f"{directory} is no directory of ours ({error.strerror}): remove it") from error
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise SpecError(f"{directory} belongs to another user (uid {found.st_uid}): remove it")
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


def socket_path(directory: Path, deployment: str, index: int) -> Path:
    """The socket of one replica: readable, safe as a file name, and never longer than the room for it."""
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", deployment)
    if readable == deployment and len(f"{readable}.{index}.sock") <= MAX_SOCKET_NAME_BYTES:
        return directory / f"{readable}.{index}.sock"
    digest = hashlib.sha256(deployment.encode()).hexdigest()[:8]
    end = f"~{digest}.{index}.sock"
    return directory / f"{readable[: MAX_SOCKET_NAME_BYTES - len(end)]}{end}"


# --- reload ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Replacement:
    """What turns one set of replicas into another. Everything is in order of its key."""

    start: list[ReplicaSpec]
    stop: list[ReplicaKey]
    restart: list[ReplicaSpec]
    adopt: list[ReplicaSpec]
    """The process serves on; only its time limits or callbacks may be new."""


def replacement(old: Mapping[ReplicaKey, ReplicaSpec], new: Mapping[ReplicaKey, ReplicaSpec]) -> Replacement:
    kept = sorted(old.keys() & new.keys())
    return Replacement(
        start=[new[key] for key in sorted(new.keys() - old.keys())],
        stop=sorted(old.keys() - new.keys()),
        restart=[new[key] for key in kept if not old[key].same_process(new[key])],
        adopt=[new[key] for key in kept if old[key].same_process(new[key])],
    )
