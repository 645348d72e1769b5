"""A virtual environment that holds exactly what the lock files say, with stamps that make a second call quick."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.progress import StepFailed, run_logged

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "logs"

NO_VENV = "Python's venv module is incomplete. On Debian or Ubuntu: sudo apt-get install python3-venv"
NO_INDEX = "pip could not get a package: check the network, or the index that this machine's pip is configured to use."


def digest(*parts: str | bytes) -> str:
    """A short name for the given contents; parts do not run into each other."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()[:24]


OVERRIDDEN = frozenset({"dev.txt"})
"""Locks whose packages do not fit together by their own words (requirements/overrides.in): pip would refuse them."""


@dataclass(frozen=True)
class LockFile:
    """One file of requirements/: exact versions with hashes."""

    name: str

    @property
    def path(self) -> Path:
        return ROOT / "requirements" / self.name

    def key(self) -> str:
        return digest(self.path.read_bytes())


class Environment:
    """A virtual environment at `path`, made with the Python that runs this."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bin = path / "bin"
        self.python = self.bin / "python"
        self.stamps = path / ".outpost-stamps"

    def create(self) -> bool:
        """Make it, or keep it when it works and is of this Python version. True if it was made now."""
        wanted = f"{sys.version_info.major}.{sys.version_info.minor}"
        if self.python.exists():
            if self._version() == wanted:
                self.stamps.mkdir(exist_ok=True)
                return False
            if not self.stamps.is_dir():
                raise StepFailed(
                    f"{self.path} holds another Python's environment that `make` did not create. "
                    "Move it away, or name another place: make VENV=DIR …"
                )
            shutil.rmtree(self.path)
        command = [sys.executable, "-m", "venv", str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            output = (done.stdout + done.stderr).strip()
            raise StepFailed(f"{output}\n\n{NO_VENV if 'ensurepip' in output else 'The environment was not made.'}")
        self.stamps.mkdir()
        return True

    def _version(self) -> str:
        ask = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([str(self.python), "-c", ask], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def stamped(self, step: str, key: str) -> bool:
        stamp = self.stamps / step
        return stamp.is_file() and stamp.read_text(encoding="utf-8") == key

    def stamp(self, step: str, key: str) -> None:
        (self.stamps / step).write_text(key, encoding="utf-8")

    def pip(self, *arguments: str) -> list[str]:
        quiet = ["--disable-pip-version-check", "--no-input"]
        return [str(self.python), "-m", "pip", *arguments, *quiet]

    def install(self, *locks: LockFile, label: str = "packages") -> bool:
        """Install what the locks say, wheels only, hashes checked. True if anything had to be done."""
        missing = [lock for lock in locks if not self.stamped(lock.name, lock.key())]
        for lock in missing:
            run_logged(
                f"{label} (requirements/{lock.name})",
                self.pip(
                    *("install", "--require-hashes", "--only-binary", ":all:", "--progress-bar", "off"),
                    *(("--no-deps",) if lock.name in OVERRIDDEN else ()),
                    *("-r", str(lock.path)),
                ),
                log=LOGS / f"pip-{lock.path.stem}.log",
                cwd=ROOT,
                detail=pip_detail,
                hint=pip_hint,
            )
            self.stamp(lock.name, lock.key())
        return bool(missing)

    def install_loose(self, requirement: str) -> bool:
        """Install one pinned requirement in whatever build the index has for this machine, and what it needs."""
        if self.stamped("loose", requirement):
            return False
        name = requirement.partition("==")[0]
        run_logged(
            requirement,
            self.pip("install", "--only-binary", ":all:", "--progress-bar", "off", requirement),
            log=LOGS / f"pip-{name}.log",
            cwd=ROOT,
            detail=pip_detail,
            hint=pip_hint,
        )
        self.stamp("loose", requirement)
        return True

    def install_project(self) -> bool:
        """Install this checkout itself, editable: a change of the source needs no new install."""
        key = digest(str(ROOT), (ROOT / "pyproject.toml").read_bytes())
        if self.stamped("project", key):
            return False
        run_logged(
            "the outpost command",
            self.pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)),
            log=LOGS / "pip-project.log",
            cwd=ROOT,
        )
        self.stamp("project", key)
        return True

    def variables(self) -> dict[str, str]:
        """The process environment with this one's commands first on PATH."""
        return os.environ | {"PATH": f"{self.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def pip_detail(line: str) -> str | None:
    """What a line of pip's output says about its progress; None where it says nothing."""
    if found := re.match(r"\s*(Collecting|Processing|Downloading) (\S+)", line):
        return found[2].rsplit("/", 1)[-1].split(";")[0]
    return "installing" if line.startswith("Installing collected packages") else None


def pip_hint(output: str) -> str:
    return NO_INDEX if "Could not find a version" in output or "Connection" in output else ""
