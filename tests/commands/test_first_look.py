"""What a newcomer meets: the greeting of `outpost serve`, its hints, and `outpost chat`."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from appliance.cli import app
from appliance.commands import terminal
from appliance.commands.serve import first_request
from appliance.providers.upstream import READY, Capabilities, Readiness
from appliance.routing.routes import Route, Target
from tests.gateway import ROOT, UpstreamThread


class Model:
    """An upstream that is only looked at."""

    def __init__(self, *kinds: str) -> None:
        self.name = "model"
        self.capabilities = Capabilities(frozenset(kinds))

    def readiness(self) -> Readiness:
        return READY


def route(name: str, *kinds: str) -> Route:
    return Route(name, (Target(Model(*kinds)),))  # type: ignore[arg-type]


VECTORS, CHAT = route("vectors", "embeddings"), route("talker", "chat.completions", "completions")


def request_of(text: str) -> tuple[str, dict[str, Any]]:
    """The path and the body of the `curl` line, as a shell reads it."""
    words = shlex.split(text[text.index("curl") : text.index("\n\nStop")].partition("\n\n")[0])
    return words[1], json.loads(words[words.index("-d") + 1])


def test_the_greeting_asks_the_first_model_that_can_chat() -> None:
    url, body = request_of(first_request("http://b:1", [VECTORS, CHAT], "op-key", "outpost keys create NAME"))
    assert url == "http://b:1/v1/chat/completions"
    assert body["model"] == "talker"
    assert body["messages"][0]["role"] == "user"


def test_the_greeting_asks_for_vectors_where_nothing_chats() -> None:
    url, body = request_of(first_request("http://b:1", [VECTORS], None, "outpost keys create NAME"))
    assert url == "http://b:1/v1/embeddings"
    assert (body["model"], list(body)) == ("vectors", ["model", "input"])
    url, body = request_of(first_request("http://b:1", [route("old", "completions")], "op-key", "x"))
    assert url == "http://b:1/v1/completions"
    assert "prompt" in body


def test_the_greeting_says_how_to_get_a_key_when_it_shows_none() -> None:
    made = first_request("http://b:1", [CHAT], None, "/opt/x/outpost keys create NAME --data-dir /d")
    assert "$OUTPOST_API_KEY" in made
    assert "/opt/x/outpost keys create NAME --data-dir /d" in made
    assert "keys create" not in first_request("http://b:1", [CHAT], "op-key", "outpost keys create NAME")
    assert "curl" not in first_request("http://b:1", [], "op-key", "outpost keys create NAME")


# --- the command's own name -------------------------------------------------------------------------


def test_hints_name_the_command_as_it_can_be_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin = tmp_path / "a venv" / "bin"
    bin.mkdir(parents=True)
    script = bin / "outpost"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bin / "python"))
    monkeypatch.setenv("PATH", os.defpath)
    assert terminal.command() == shlex.quote(str(script))
    monkeypatch.setenv("PATH", str(bin))
    assert terminal.command() == "outpost"
    # A link to it is as good; another installation's command is not.
    other = tmp_path / "local"
    other.mkdir()
    (other / "outpost").symlink_to(script)
    monkeypatch.setenv("PATH", str(other))
    assert terminal.command() == "outpost"
    (other / "outpost").unlink()
    (other / "outpost").write_text("#!/bin/sh\n")
    (other / "outpost").chmod(0o755)
    assert terminal.command() == shlex.quote(str(script))
    script.unlink()
    assert terminal.command().endswith("bin/python' -m appliance.cli")


def test_the_hints_of_commands_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OUTPOST_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", os.defpath)
    called = terminal.command()
    assert called != "outpost"
    assert f"{called} keys create NAME" in CliRunner().invoke(app, ["chat"]).stderr
    listed = CliRunner().invoke(app, ["keys", "list", "--data-dir", str(tmp_path)]).stderr
    assert f"{called} keys create NAME --role admin" in listed
    nobody = CliRunner().invoke(app, ["chat", "Hi", "--key", "x", "--url", "http://127.0.0.1:1"])
    assert f"{called} serve" in nobody.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--key", "x", "--url", "foo"], "--url: foo is no http(s) address"),
        (["--key", "x", "--url", "http://"], "is no http(s) address"),
        (["--key", "op-a\nop-b"], "perhaps a line break"),
        (["--key", "clé"], "characters that no key has"),
    ],
)
def test_what_chat_cannot_even_send(words: list[str], told: str) -> None:
    ended = CliRunner().invoke(app, ["chat", "Hi", *words])
    assert ended.exit_code == 1
    assert told in ended.stderr


def test_chat_tells_a_gateway_from_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        def answer() -> None:
            for _ in range(2):
                connection, _ = other.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"no\r\n\r\n")
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(4096)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        plain = CliRunner().invoke(app, ["chat", "Hi", "--key", "x", "--url", f"http://127.0.0.1:{port}"])
        assert "is no gateway, or speaks https" in plain.stderr
        safe = CliRunner().invoke(app, ["chat", "Hi", "--key", "x", "--url", f"https://127.0.0.1:{port}"])
        assert "no safe connection to https://" in safe.stderr
        assert "SSL_CERT_FILE" in safe.stderr
        thread.join(10)


# --- outpost chat -------------------------------------------------------------------------------------


@pytest.fixture
def upstream() -> Iterator[UpstreamThread]:
    with UpstreamThread() as upstream:
        yield upstream


def chat_command(upstream: UpstreamThread, *more: str) -> list[str]:
    base = upstream.fake.url.removesuffix("/v1")
    return [sys.executable, "-m", "appliance.cli", "chat", "--url", base, "--model", "ok", *more]


def environment(**keys: str) -> dict[str, str]:
    plain = {k: v for k, v in os.environ.items() if k not in ("OUTPOST_API_KEY", "OPENAI_API_KEY")}
    return {**plain, "PYTHONPATH": str(ROOT), **keys}


@pytest.mark.parametrize(
    ("keys", "sent"),
    [
        ({"OPENAI_API_KEY": "op-openai"}, "op-openai"),
        ({"OUTPOST_API_KEY": "op-ours", "OPENAI_API_KEY": "op-openai"}, "op-ours"),
    ],
)
def test_chat_takes_its_key_from_either_variable(
    upstream: UpstreamThread, keys: dict[str, str], sent: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        chat_command(upstream, "Hi"), env=environment(**keys), capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert upstream.fake.seen[-1].headers["authorization"] == f"Bearer {sent}"


@pytest.mark.parametrize("after_an_answer", [False, True])
def test_ctrl_c_at_the_prompt_ends_the_chat_at_once(
    upstream: UpstreamThread, after_an_answer: bool, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    with closing(os.fdopen(ours, "r+b", buffering=0)) as screen:
        process = subprocess.Popen(
            chat_command(upstream), env=environment(OPENAI_API_KEY="op-x"), stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True, cwd=tmp_path,
            # A shell without job control starts what it runs in the background with SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        os.close(theirs)
        try:
            read_until(ours, b"> ")
            if after_an_answer:
                screen.write(b"Hi\n")
                read_until(ours, b"> ")
            until_asleep(process.pid)
            process.send_signal(signal.SIGINT)
            assert process.wait(5) == 0
        finally:
            process.kill()
            process.wait()


def until_asleep(pid: int) -> None:
    """The prompt is written a moment before the line is waited for."""
    calm = 0
    while calm < 10:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        calm = calm + 1 if state == "S" else 0
        time.sleep(0.02)


def read_until(descriptor: int, marker: bytes, timeout_s: float = 60.0) -> bytes:
    seen = b""
    end = time.monotonic() + timeout_s
    while not seen.endswith(marker):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"waited for {marker!r}, got {seen!r}"
        seen += os.read(descriptor, 1024)
    return seen
