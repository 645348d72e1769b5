"""A command loads what it needs: nobody waits for the database or the gateway's modules who only asks for help."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from aiohttp import web

from appliance.cli import app
from appliance.commands import asking, requests
from appliance.commands.listed import ListedGroup
from appliance.door.operation import MAX_ROWS
from appliance.records.store import MAX_LIMIT

HEAVY = frozenset(
    {"aiohttp", "alembic", "asyncpg", "cryptography", "jinja2", "joserfc", "llama_cpp", "llguidance", "numpy",
     "opentelemetry", "prometheus_client", "sqlalchemy", "transformers", "uvloop"}
)  # fmt: skip
SETTINGS = frozenset({"yaml"})
"""What reading the settings takes; Typer needs pydantic for itself."""
GROUP = typer.main.get_command(app)
assert isinstance(GROUP, ListedGroup)


def loaded(*words: str) -> set[str]:
    """The packages that a call loads. The call has to succeed."""
    script = (
        "import sys\nfrom appliance.cli import main\ntry:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "sys.stderr.write('\\nloaded ' + ' '.join({name.partition('.')[0] for name in sys.modules}))\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("loaded ")[2].split())


@pytest.mark.parametrize("words", [("--help",), ("--version",)])
def test_the_list_of_commands_needs_none_of_them(words: tuple[str, ...]) -> None:
    assert loaded(*words) & (HEAVY | SETTINGS | {"pydantic"}) == set()


@pytest.mark.parametrize("name", sorted(set(GROUP.listed) - {"chat", "serve"}))
def test_help_of_a_command(name: str) -> None:
    """The help of `chat` and `serve` may need what they run on."""
    assert loaded(name, "--help") & HEAVY == set()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Path]:
    """The data folder of something that answers every question with an empty list."""
    ready, done = threading.Event(), threading.Event()

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"data": []})

    async def serve() -> None:
        site = web.Application()
        site.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(site)
        await runner.setup()
        (tmp_path / "run").mkdir()
        await web.UnixSite(runner, str(tmp_path / "run" / "control.sock")).start()
        ready.set()
        await asyncio.to_thread(done.wait)
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    yield tmp_path
    done.set()
    thread.join(30)


@pytest.mark.parametrize(
    "words", [("keys", "list"), ("teams", "list"), ("limits", "list"), ("usage", "report"), ("requests", "tail")]
)
def test_a_question_to_a_running_gateway(gateway: Path, words: tuple[str, ...]) -> None:
    config = gateway / "outpost.yaml"
    config.write_text(f"data_dir: {gateway}\n")
    assert loaded(*words, "--config", str(config)) & HEAVY == set()
    if words[0] != "limits":
        assert loaded(*words, "--data-dir", str(gateway)) & SETTINGS == set(), "they are not asked for"


def test_the_list_says_of_commands_what_they_say_of_themselves() -> None:
    for name, listed in GROUP.listed.items():
        command = GROUP.commands[name]
        assert command.name == name
        text = inspect.cleandoc(command.help or "").replace("\n", " ")
        assert text == listed.help, name


def test_pages_are_as_long_as_the_api_gives() -> None:
    """These are said twice, since the modules of the API need the database."""
    assert (asking.PAGE, requests.MOST) == (MAX_ROWS, MAX_LIMIT)


def test_a_shell_completes_names_and_options() -> None:
    def completed(line: str) -> list[str]:
        words = line.split(" ")
        variables = {
            "_OUTPOST_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        }
        script = "from appliance.cli import app; app(prog_name='outpost')"
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=variables, check=False
        )
        return done.stdout.split()

    assert completed("outpost te") == ["teams"]
    assert set(completed("outpost ")) == set(GROUP.listed)
    assert completed("outpost keys ro") == ["rotate"]
    assert completed("outpost keys create --ro") == ["--role", "--route"]
