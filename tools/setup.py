"""Everything that `make serve` and `make test` need, step by step; a step that is already done costs nothing.

Run as `python -m tools.setup run|dev`: environment, packages, the outpost command, models, engine.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools import llama_build
from tools.environment import LOGS, ROOT, Environment, LockFile
from tools.progress import StepFailed, run_logged, say

PROOF_MODEL = "smollm2-135m-instruct"
MODELS = (PROOF_MODEL, "all-minilm-l6-v2")
"""What the embedded default deployments run."""


@contextmanager
def only_one(environment: Environment) -> Iterator[None]:
    """Two `make` at once on one environment would install over each other: the second waits."""
    environment.path.parent.mkdir(parents=True, exist_ok=True)
    with (environment.path.parent / f".{environment.path.name.lstrip('.')}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another set-up of {environment.path} is running; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def packages(environment: Environment, *, dev: bool) -> None:
    if environment.create():
        say(f"made {environment.path} with Python {sys.version.split()[0]}")
    environment.install(LockFile("build.txt"), label="build packages")
    environment.install(LockFile("dev.txt" if dev else "run.txt"))
    environment.install_project()


def outpost(environment: Environment, *arguments: str) -> list[str]:
    return [str(environment.bin / "outpost"), *arguments]


def model_file(environment: Environment, model: str) -> Path | None:
    """Where the catalogue has the weights of `model`; None while they are not there."""
    command = outpost(environment, "models", "show", model, "--json")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepFailed(f"{done.stdout}{done.stderr}\n{shlex.join(command)} failed")
    paths = [Path(file["path"]) for file in json.loads(done.stdout)["files"] if file.get("path")]
    return next((path for path in paths if path.is_file()), None)


def models(environment: Environment) -> Path:
    """Import what is missing; the file of the model that the engine is proved with."""
    found: dict[str, Path] = {}
    for model in MODELS:
        path = model_file(environment, model)
        if path is None:
            command = outpost(environment, "models", "import", model)
            run_logged(f"model {model}", command, log=LOGS / f"model-{model}.log", cwd=ROOT, done="imported")
            path = model_file(environment, model)
        if path is None:
            raise StepFailed(f"{model} was imported, but the catalogue does not show its file")
        found[model] = path
    return found[PROOF_MODEL]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "dev"], help="packages for serving, or also those for tests")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the virtual environment (default: .venv)")
    parser.add_argument("--packages-only", action="store_true", help="no models, no engine")
    parser.add_argument(
        "--rebuild", action="store_true", help="compile the engine even where a proven build is there"
    )
    arguments = parser.parse_args()
    environment = Environment(arguments.venv.expanduser().resolve())
    try:
        with only_one(environment):
            packages(environment, dev=arguments.what == "dev")
            if not arguments.packages_only:
                weights = models(environment)
                llama_build.ensure(environment, weights, os.environ, again=arguments.rebuild)
    except StepFailed as failure:
        sys.exit(f"\noutpost: {failure}")
    except KeyboardInterrupt:
        sys.exit("\noutpost: interrupted; the same command goes on from here")


if __name__ == "__main__":
    main()
