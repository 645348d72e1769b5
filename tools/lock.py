"""Renew requirements/*.txt: exact versions with hashes, for every Python and processor that Outpost supports.

Run as `python -m tools.lock [--upgrade]`. Without --upgrade, versions that still satisfy pyproject.toml stay.
The files hold no address: pip takes the packages from wherever the site has configured it to.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

from tools.environment import ROOT, Environment, LockFile

LOCKS = ROOT / "requirements"
ENGINE = "llama-cpp-python"


def engine_requirement(pyproject: Path) -> str:
    """The one line of pyproject.toml that pins the engine, such as `llama-cpp-python==0.3.36`."""
    dependencies: list[str] = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    (line,) = (d for d in dependencies if d.startswith(ENGINE))
    return line


def plan(engine: str) -> list[tuple[str, list[str], str]]:
    """(lock file, arguments of `uv pip compile`, its standard input), in order: dev binds the others."""
    follow = ["--constraint", "requirements/dev.txt"]
    # The engine has a lock of its own because it is a source distribution that is built and proved apart.
    without_engine = ["--no-emit-package", ENGINE]
    return [
        (
            "dev.txt",
            ["pyproject.toml", "--extra", "dev", *without_engine, "--override", "requirements/overrides.in"],
            "",
        ),
        ("run.txt", ["pyproject.toml", *follow, *without_engine], ""),
        ("guard.txt", ["pyproject.toml", "--extra", "guard", *follow, *without_engine], ""),
        ("gpu.txt", ["-", *follow], "nvidia-ml-py>=13\n"),
        ("build.txt", ["requirements/build.in", *follow], ""),
        ("cmake.txt", ["requirements/cmake.in"], ""),
        ("lock.txt", ["requirements/lock.in"], ""),
        ("llama.txt", ["-", "--no-deps"], engine + "\n"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that pyproject.toml allows")
    upgrade = parser.parse_args().upgrade

    environment = Environment(ROOT / "build" / "lock-venv")
    environment.create()
    environment.install(LockFile("lock.txt"))
    common = [
        "--universal", "--python-version", "3.11", "--generate-hashes", "--no-emit-index-url",
        "--custom-compile-command", "make lock", "--quiet",
    ]  # fmt: skip
    for name, arguments, text in plan(engine_requirement(ROOT / "pyproject.toml")):
        output = ["--output-file", f"requirements/{name}", *(["--upgrade"] if upgrade else [])]
        command = [str(environment.bin / "uv"), "pip", "compile", *arguments, *common, *output]
        done = subprocess.run(command, cwd=ROOT, input=text, text=True, check=False, stdout=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(f"lock: {name} failed, see above")
        print(f"lock: requirements/{name}", flush=True)


if __name__ == "__main__":
    main()
