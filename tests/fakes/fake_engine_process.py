"""An engine process that misbehaves as its arguments say. A Unix socket server; one JSON object a line, both ways.

    python -I -S fake_engine_process.py SOCKET [OPTION…]

Requests are {"id": n, "do": …}: "status" is answered at once, "hold" never, "hang" stops all answers, "crash" exits
with code 3, "close" hangs up on everybody but lives on.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

SLEEPER = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("--exit", type=int, help="leave at once with this code")
    parser.add_argument("--exit-until", type=Path, help="leave at once as long as this file does not exist")
    parser.add_argument("--never-listen", action="store_true")
    parser.add_argument("--log-before", type=int, default=0, help="log so many lines, slowly, before it listens")
    parser.add_argument("--log-pause", type=float, default=0.1)
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--grandchild", type=Path, help="start a stubborn child and write its pid here")
    parser.add_argument("--environment", type=Path, help="write the environment here")
    parser.add_argument("--chatter", type=int, default=0, help="log so many bytes before it listens")
    options = parser.parse_args()

    say("fake engine: hello")
    if options.environment:
        write(options.environment, json.dumps(dict(os.environ)))
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.grandchild:
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", SLEEPER])
        write(options.grandchild, str(child.pid))
    if options.exit is not None or (options.exit_until and not options.exit_until.exists()):
        say("fake engine: cannot go on\nfake engine: the cause is here")
        sys.exit(options.exit or 4)
    lifeline = int(os.environ["OUTPOST_LIFELINE_FD"])
    for number in range(options.log_before):
        select.select([lifeline], [], [], options.log_pause)
        say(f"loading, part {number}")
    while options.chatter > 0:
        say("x" * 999)
        options.chatter -= 1000
    if options.never_listen:
        select.select([lifeline], [], [])
        sys.exit(0)
    serve(options.socket, lifeline)


def serve(path: str, lifeline: int) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    clients: dict[int, socket.socket] = {}
    while True:
        waiting: list[Any] = [listener, lifeline, *clients]
        readable, _, _ = select.select(waiting, [], [])
        if lifeline in readable:
            sys.exit(0)
        if listener in readable:
            client = listener.accept()[0]
            clients[client.fileno()] = client
        for number in [r for r in readable if isinstance(r, int) and r in clients]:
            client = clients[number]
            data = client.recv(65536)
            if not data:
                clients.pop(number).close()
            for line in data.splitlines():
                answer(client, json.loads(line), clients)


def answer(client: socket.socket, request: dict[str, object], clients: dict[int, socket.socket]) -> None:
    match request["do"]:
        case "status":
            client.sendall(json.dumps({"id": request["id"], "pid": os.getpid()}).encode() + b"\n")
        case "hang":
            while True:
                signal.pause()
        case "crash":
            say("fake engine: crashing as told")
            os._exit(3)
        case "close":
            for other in clients.values():
                other.close()
            clients.clear()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write(path: Path, text: str) -> None:
    """Whoever sees the file sees all of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


if __name__ == "__main__":
    main()
