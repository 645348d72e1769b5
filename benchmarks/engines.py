"""The engines that are compared: one entry each, all serving the same model over HTTP on the loopback interface."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateways import OUTPOST, Launch, Running, outpost_command
from benchmarks.installs import Installer, engine_libraries, run_step
from benchmarks.processes import ROOT, Child, Unavailable, free_port
from runtimes.catalogue import Catalogue, CatalogueError, NotImported

CPP_SERVER = "llama.cpp C++ server"
MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Shape:
    """What every engine is given."""

    model: Path
    """The GGUF file."""
    threads: int
    slots: int = 8
    context: int = 2048
    """Tokens per slot."""


@dataclass(frozen=True)
class EngineSubject:
    name: str
    does: str
    prepare: Callable[[int, Shape, Path, Installer], Launch]
    """(port, shape, scratch folder, installer) → launch. Raises Unavailable."""


def model_file(installer: Installer) -> Path:
    """The model in a catalogue store of the benchmarks' own, imported on demand. Raises Unavailable."""
    data_dir = installer.cache / "outpost-data"
    catalogue = Catalogue([], data_dir / "models")
    try:
        return catalogue.resolve(MODEL).main
    except NotImported:
        installer.check_allowed(MODEL)
        command = [*outpost_command(), "models", "import", MODEL, "--data-dir", data_dir]
        run_step(command, installer.cache / "import.log")
    except CatalogueError as error:
        raise Unavailable(str(error)) from None
    return catalogue.resolve(MODEL).main


def _outpost(port: int, shape: Shape, scratch: Path, installer: Installer, more: str = "") -> Launch:
    key = "op-" + secrets.token_urlsafe(32)
    arguments = f"{{context: {shape.context}, slots: {shape.slots}, threads: {shape.threads}{more}}}"
    data_dir = scratch / "data"
    data_dir.mkdir(exist_ok=True)
    # Fresh records for each run, the benchmarks' model store for all.
    (data_dir / "models").symlink_to(installer.cache / "outpost-data" / "models")
    config = scratch / "outpost.yaml"
    config.write_text(
        f"""server: {{listen: "127.0.0.1:{port}"}}
console: {{listen: "127.0.0.1:{free_port()}"}}
data_dir: {data_dir}
identity: {{keys: [{{name: bench, key: {{env: OUTPOST_BENCH_KEY}}, role: user}}]}}
deployments:
  - {{name: bench, model: {MODEL}, engine: llamacpp, replicas: {{min: 1}}, args: {arguments}}}
"""
    )
    return Launch(
        [*outpost_command(), "serve", "-c", config],
        "/readyz",
        env={"OUTPOST_BENCH_KEY": key},
        headers={"authorization": f"Bearer {key}"},
    )


def _outpost_flash(port: int, shape: Shape, scratch: Path, installer: Installer) -> Launch:
    return _outpost(port, shape, scratch, installer, ", flash_attention: true")


def _cpp_server(port: int, shape: Shape, scratch: Path, installer: Installer) -> Launch:
    server = installer.llama_server()
    total = shape.context * shape.slots
    argv: list[str | Path] = [server, "--model", shape.model, "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--threads", str(shape.threads), "--threads-batch", str(shape.threads)]
    argv += ["--parallel", str(shape.slots), "--ctx-size", str(total), "--cache-ram", "0", "--no-ui"]
    # The engine's own libraries come first: same compiler, same flags, only the server differs.
    return Launch(argv, "/health", env={"LD_LIBRARY_PATH": f"{engine_libraries()}{os.pathsep}{server.parent}"})


def _xllamacpp(port: int, shape: Shape, scratch: Path, installer: Installer) -> Launch:
    python = installer.environment("xllamacpp", "xllamacpp==2026.10.11549")
    argv: list[str | Path] = [python, ROOT / "benchmarks" / "peers" / "xllamacpp_server.py"]
    argv += ["--model", shape.model, "--port", str(port), "--slots", str(shape.slots)]
    argv += ["--context", str(shape.context), "--threads", str(shape.threads)]
    return Launch(argv, "/health")


ENGINES = (
    EngineSubject(OUTPOST, "the llama.cpp engine behind the whole gateway: key, routing, records", _outpost),
    EngineSubject(
        "Outpost, flash_attention: true",
        "the same with args.flash_attention, which its peers use by default",
        _outpost_flash,
    ),
    EngineSubject(CPP_SERVER, "built here from the same sources, on the engine's own libraries", _cpp_server),
    EngineSubject("xllamacpp wheel", "the same server as PyPI 2026.10.11549 carries it", _xllamacpp),
)


def start(subject: EngineSubject, shape: Shape, scratch: Path, installer: Installer, stack: ExitStack) -> Running:
    """Start an engine and wait until it answers; the stack stops it. Raises Unavailable."""
    port = free_port()
    scratch.mkdir(parents=True, exist_ok=True)
    launch = subject.prepare(port, shape, scratch, installer)
    child = stack.enter_context(Child(launch.argv, log=scratch / "log.txt", env=launch.env))
    child.wait_listening(port, 120.0, launch.health)
    return Running(subject.name, port, child.pid, launch.headers, 0, False, launch.health)
