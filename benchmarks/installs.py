"""Peers on this disk: virtual environments of their own, and llama.cpp's C++ server built from source.

Everything lies in a cache folder outside the project (`outpost/benchmarks` under `$OUTPOST_CACHE`, else under
`$XDG_CACHE_HOME`, else under `~/.cache`) and is made on demand, once.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Unavailable

_STEP_LIMIT_S = 1800


def cache_folder() -> Path:
    home = os.environ.get("OUTPOST_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home).expanduser() / "outpost" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True)
class Installer:
    """Where peers lie and whether missing ones may be fetched in this run."""

    cache: Path
    may_install: bool

    def environment(self, name: str, *requirements: str) -> Path:
        """The Python of a virtual environment with exactly these requirements. Raises Unavailable."""
        folder = self.cache / "venvs" / name
        python = folder / "bin" / "python"
        stamp = folder / "installed.txt"
        wanted = "\n".join(requirements) + "\n"
        if stamp.exists() and stamp.read_text() == wanted:
            return python
        self.check_allowed(name)
        say(f"installing {' '.join(requirements)}")
        shutil.rmtree(folder, ignore_errors=True)
        run_step([sys.executable, "-m", "venv", folder], self.cache / f"{name}.log")
        run_step(
            [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *requirements],
            self.cache / f"{name}.log",
        )
        stamp.write_text(wanted)
        return python

    def llama_server(self) -> Path:
        """llama.cpp's C++ server, from the sources that the installed llama-cpp-python was built from.

        It is started on the very shared libraries of that installation (same compiler, same flags), so that
        only the server around them differs. Raises Unavailable.
        """
        try:
            version = importlib.metadata.version("llama-cpp-python")
        except importlib.metadata.PackageNotFoundError:
            raise Unavailable("llama-cpp-python is not installed") from None
        folder = self.cache / f"llama-server-{version}"
        server = folder / "build" / "bin" / "llama-server"
        if (folder / "installed.txt").exists():
            return server
        for tool in ("cmake", "ninja"):
            if shutil.which(tool) is None:
                raise Unavailable(f"{tool} is not installed")
        self.check_allowed("llama-server")
        log = self.cache / "llama-server.log"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        pip, source = [sys.executable, "-m", "pip"], f"llama-cpp-python=={version}"
        say(f"fetching the sources of llama-cpp-python {version} (77 MB)")
        run_step(
            [*pip, "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", folder, source],
            log,
        )
        with tarfile.open(next(folder.glob("*.tar.gz"))) as sources:
            sources.extractall(folder, filter="data")
        llama = next(folder.glob("llama_cpp_python-*")) / "vendor" / "llama.cpp"
        say("building llama.cpp's C++ server (some minutes)")
        run_step(["cmake", "-G", "Ninja", "-S", llama, "-B", folder / "build", *_server_flags()], log)
        run_step(["ninja", "-C", folder / "build", "llama-server"], log)
        (folder / "installed.txt").write_text(version)
        return server

    def check_allowed(self, name: str) -> None:
        """Raises Unavailable where nothing may be fetched."""
        if not self.may_install:
            raise Unavailable(f"{name} is not here yet (a run without --quick fetches it)")


def _server_flags() -> list[str]:
    """Flags of the peer's build; `CMAKE_ARGS` adds the compiler and ggml options of the engine's own build."""
    off = ["LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP", "LLAMA_BUILD_UI"]
    # The web page of the server would be fetched from the network at build time.
    off += ["LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL", "GGML_OPENMP"]
    clang = ["-DCMAKE_C_COMPILER=clang-16", "-DCMAKE_CXX_COMPILER=clang++-16"] if shutil.which("clang-16") else []
    return [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_SHARED_LIBS=ON",
        # No search path in the binary: which libraries it runs on is decided at its start.
        "-DCMAKE_SKIP_BUILD_RPATH=ON",
        "-DGGML_NATIVE=ON",
        *(f"-D{name}=OFF" for name in off),
        "-DLLAMA_BUILD_TOOLS=ON",
        "-DLLAMA_BUILD_SERVER=ON",
        *clang,
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    ]


def engine_libraries() -> Path:
    """The folder of the llama.cpp libraries that Outpost's engine loads."""
    for file in importlib.metadata.files("llama-cpp-python") or []:
        if file.name == "libllama.so":
            return Path(str(file.locate())).parent
    raise Unavailable("the installed llama-cpp-python carries no libllama.so")


def run_step(argv: Sequence[str | Path], log: Path) -> None:
    """Run a command with its output appended to `log`. Raises Unavailable with the last line that says why."""
    started = time.monotonic()
    with log.open("ab") as out:
        try:
            done = subprocess.run(
                [str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=_STEP_LIMIT_S
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{Path(argv[0]).name} took longer than {_STEP_LIMIT_S} s") from None
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no output"]
        raise Unavailable(f"{Path(argv[0]).name} failed: {errors[-1][:200]}")
    if (took := time.monotonic() - started) > 5:
        say(f"  took {took:.0f} s")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
