"""`outpost serve`: runs the appliance in the foreground until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop

from appliance.app import App
from appliance.commands.terminal import command
from appliance.errors import OutpostError
from appliance.redact import Secrets
from appliance.routing.routes import Route
from appliance.settings import Loaded, SettingsError, choose_file, load
from appliance.telemetry.known import learn
from appliance.telemetry.logs import install
from runtimes.engine import EngineLost
from runtimes.supervisor import SpecError

logger = logging.getLogger("outpost")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="Settings file. Left out: $OUTPOST_CONFIG, else outpost.yaml here, else the defaults."
    ),
]


def serve(config: ConfigOption = None) -> None:
    """Run the appliance until SIGINT or SIGTERM; SIGHUP applies the settings file anew."""
    secrets = Secrets()
    try:
        loaded = load(choose_file(config, os.environ, Path.cwd()), os.environ)
    except SettingsError as error:
        for problem in error.problems:
            typer.echo(str(problem), err=True)
        raise typer.Exit(1) from None
    learn(secrets, loaded.settings, os.environ)
    install(loaded.settings.log.level, loaded.settings.log.format, secrets, sys.stderr)
    for warning in loaded.warnings:
        logger.warning("%s", warning)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        raise typer.Exit(runner.run(_serve(loaded, secrets)))


async def _serve(loaded: Loaded, secrets: Secrets) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    app = App(loaded, os.environ, secrets)
    # Until there is something to reload, the signal must not end the process, as it does by default.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        await app.start()
    except (OutpostError, SpecError) as error:
        sys.stderr.write(f"outpost: {getattr(error, 'message', error)}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"outpost: cannot start: {error.strerror or error} ({_where(loaded)})\n")
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _stop, stopping)
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(_reload(app))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    _say_hello(app, loaded)
    _settle()
    greeting = loop.create_task(_say_ready(app, loaded))
    await stopping.wait()
    greeting.cancel()
    await app.stop()
    return 0


def _stop(stopping: asyncio.Event) -> None:
    if stopping.is_set():
        os._exit(130)  # asked twice: the operator does not want to wait; engines end with this process
    stopping.set()
    sys.stderr.write("outpost: stopping; running requests may finish (once more to end at once)\n")


async def _reload(app: App) -> None:
    try:
        await app.reload()
    except OutpostError as error:
        logger.error("settings not reloaded, the old ones stay in force: %s", error.message)
    except Exception:
        logger.exception("settings not reloaded, the old ones stay in force")


def _settle() -> None:
    """Let the garbage collector look only at what comes from now on, and not at every few requests. Through all that
    has been imported and built a full collection takes tens of milliseconds, during which no token passes; and what a
    request makes goes without the collector, so that by its defaults it looks in vain some hundred times a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 2, 10)


def _where(loaded: Loaded) -> str:
    settings = loaded.settings
    return f"listening on {settings.server.listen} and {settings.console.listen}, data in {settings.data_dir}"


# --- what the terminal shows --------------------------------------------------------------------------


def _base_url(app: App) -> str:
    return (app.listening() or {}).get("public", "")


def _say_hello(app: App, loaded: Loaded) -> None:
    settings = loaded.settings
    say = sys.stderr.write
    say(
        f"\nOutpost is listening on {_base_url(app)}"
        f"   (settings: {loaded.path or 'built in'}, data: {settings.data_dir})\n"
    )
    if app.first_key is not None:
        say(f"\n  First admin key, shown this once:  {app.first_key}\n")
    if settings.deployments:
        say("\nLoading the models …\n")
    sys.stderr.flush()


async def _say_ready(app: App, loaded: Loaded) -> None:
    began = time.monotonic()
    say = sys.stderr.write
    try:
        await app.wait_ready()
    except EngineLost as error:
        say(f"outpost: not every model could be started: {error.message}\n")
    else:
        if app.settings.deployments:
            say(f"All models are ready after {time.monotonic() - began:.1f} s. Try one:\n")
    say(
        first_request(_base_url(app), app.gateway.router.routes, app.first_key, _keys_command(loaded.settings.data_dir))
    )
    sys.stderr.flush()


QUESTION = "What is the capital of France?"
TRIALS = (
    ("chat.completions", "chat/completions", {"messages": [{"role": "user", "content": QUESTION}]}),
    ("embeddings", "embeddings", {"input": QUESTION}),
    ("completions", "completions", {"prompt": "The capital of France is", "max_tokens": 16}),
)
"""What a first request asks for, the most telling first: ability, path, fields beside the model."""


def first_request(url: str, routes: Sequence[Route], key: str | None, keys_command: str) -> str:
    """A request to copy, to the first model that can chat; where none can, to one that can do something else.

    `key`: the first admin's, None if it was shown at an earlier start; `keys_command` makes another.
    """
    lines = ""
    for ability, path, fields in TRIALS:
        if model := next((route.model for route in routes if ability in _abilities(route)), None):
            body = msgspec.json.encode({"model": model, **fields}).decode()
            lines = (
                f"\n  curl {url}/v1/{path} "
                f"-H \"Authorization: Bearer {key or '$OUTPOST_API_KEY'}\" -H 'Content-Type: application/json' \\\n"
                f"    -d {shlex.quote(body)}\n"
            )
            break
    if key is None:
        lines += f"\n  A key for $OUTPOST_API_KEY:  {keys_command}\n"
    return lines + "\nStop with Ctrl-C.\n"


def _abilities(route: Route) -> frozenset[str]:
    return frozenset().union(*(target.upstream.capabilities.kinds for target in route.all_targets()))


def _keys_command(data_dir: Path) -> str:
    """How a key for this gateway is made, whatever folder the next shell is in."""
    return f"{command()} keys create NAME --data-dir {shlex.quote(str(data_dir.absolute()))}"
