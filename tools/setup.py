"""Everything that `make serve` and `make test` need, step by step; a step that is already done costs nothing.

Run as `python -m tools.setup run|dev|guard`: environment, packages, the outpost command, models, engine.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools import llama_build
from tools.environment import ROOT, Environment, LockFile, digest
from tools.progress import StepFailed, say

TORCH = "torch==2.13.0"
"""Trains the guard models. Not locked by hash like everything else: which build is right, for a processor alone or for
its GPU, is known to the index that this machine's pip is configured to use."""
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


def training_packages(environment: Environment) -> None:
    """What the guard models are trained with; an environment of its own, since torch is large."""
    if environment.create():
        say(f"made {environment.path} with Python {sys.version.split()[0]}")
    environment.install(LockFile("guard.txt"))
    environment.install_loose(TORCH)


def models(environment: Environment) -> Path:
    """Import the models that are missing; the file of the one that the engine is proved with."""
    if known := _remembered(environment):
        return known
    found = _model_files(environment)
    missing = [model for model, path in found.items() if path is None]
    if missing:
        say(f"models {', '.join(missing)}")
        # Its own progress is shown as it is.
        done = subprocess.run([str(environment.bin / "outpost"), "models", "import", *missing], cwd=ROOT, check=False)
        if done.returncode:
            raise StepFailed("the models could not be imported, see above")
        found = _model_files(environment)
    paths = {model: path for model, path in found.items() if path is not None}
    if len(paths) < len(MODELS):
        raise StepFailed(f"imported, but not in the catalogue: {', '.join(sorted(found.keys() - paths.keys()))}")
    environment.stamp("models", json.dumps({"key": _models_key(), "paths": paths}))
    return Path(paths[PROOF_MODEL])


def _models_key() -> str:
    """What decides where the files are: the manifests and the settings that name the data folder."""
    manifests = [path.read_bytes() for path in sorted((ROOT / "models").glob("*.yaml"))]
    chosen = [os.environ.get(name, "") for name in ("OUTPOST_DATA_DIR", "OUTPOST_CONFIG")]
    files = [Path(chosen[1]) if chosen[1] else ROOT / "outpost.yaml"]
    return digest(str(ROOT), *manifests, *chosen, *(path.read_bytes() for path in files if path.is_file()))


def _remembered(environment: Environment) -> Path | None:
    """The proof's model as the last call found it, if every file is still in its place."""
    stamp = environment.stamps / "models"
    if not stamp.is_file():
        return None
    last = json.loads(stamp.read_text(encoding="utf-8"))
    if last["key"] != _models_key() or not all(Path(path).is_file() for path in last["paths"].values()):
        return None
    return Path(last["paths"][PROOF_MODEL])


def _model_files(environment: Environment) -> dict[str, str | None]:
    command = [str(environment.python), "-m", "tools.model_files", *MODELS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepFailed(f"{done.stdout}{done.stderr}")
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", choices=["run", "dev", "guard"], help="packages for serving, for tests too, or for training"
    )
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the virtual environment (default: .venv)")
    parser.add_argument("--packages-only", action="store_true", help="no models, no engine")
    parser.add_argument("--rebuild", action="store_true", help="compile the engine even where a proven build is there")
    arguments = parser.parse_args()
    environment = Environment(arguments.venv.expanduser().resolve())
    # As ctrl-C does: what is under way ends with this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with only_one(environment):
            if arguments.what == "guard":
                training_packages(environment)
                return
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
