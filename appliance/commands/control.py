"""Speaking to the running gateway over its Unix socket.

The socket's file permission is the credential: who may open it may do what an admin key may do.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from appliance.commands.terminal import command
from appliance.errors import OutpostError

_MAX_PATH = 100
"""Bytes of a socket's path that every system takes; Linux's own bound is 107."""


class ControlError(OutpostError):
    """The running gateway refused, or cannot be spoken to; the message is the gateway's own where there is one."""

    code = "control"


class NotRunning(ControlError):
    """Nobody listens: no gateway runs on this data folder."""

    code = "not_running"


class Control:
    """One request a connection; blocking. timeout_s: for each step of it."""

    def __init__(self, path: Path, *, timeout_s: float = 10.0) -> None:
        self.path = path
        self._timeout_s = timeout_s

    def call(
        self,
        method: str,
        target: str,
        *,
        query: Mapping[str, str | int | None] | None = None,
        body: object = None,
    ) -> list[dict[str, Any]]:
        """The `data` of the answer, one thing as a list of one. Raises NotRunning, ControlError."""
        given = {name: value for name, value in (query or {}).items() if value is not None}
        if given:
            target += "?" + urlencode(given)
        connection = _UnixConnection(self.path, self._timeout_s)
        try:
            payload = None if body is None else json.dumps(body)
            headers = {} if payload is None else {"Content-Type": "application/json"}
            connection.request(method, target, payload, headers)
            response = connection.getresponse()
            status, text = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ControlError(f"The gateway at {self.path} does not answer ({error}); look at its log.") from error
        finally:
            connection.close()
        return _read(status, text)


def _read(status: int, text: bytes) -> list[dict[str, Any]]:
    """The entries of an answer; an answer of another shape is an error with its message."""
    try:
        answer = json.loads(text) if text else {}
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ControlError(f"The gateway answered {status} with something that is not JSON.")
    if status >= 400:
        error = answer.get("error")
        message = error.get("message") if isinstance(error, dict) else answer.get("detail")
        raise ControlError(str(message or f"The gateway answered {status}."))
    data = answer.get("data", [])
    return data if isinstance(data, list) else [data]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            _connect(self.sock, self._path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunning(f"No gateway listens at {self._path}; start it with `{command()} serve`.") from error
        except PermissionError as error:
            raise ControlError(
                f"{self._path} belongs to another user. Run the command as the user that runs the gateway."
            ) from error


def _connect(sock: socket.socket, path: Path) -> None:
    if len(os.fsencode(path)) <= _MAX_PATH:
        sock.connect(os.fspath(path))
        return
    # A deep data folder makes the path longer than a socket address; the folder's descriptor is a short way to it.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
