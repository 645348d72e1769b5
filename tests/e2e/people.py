"""What an operator does to a running gateway: over its API with a key, and with the command."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.gateway import ROOT, Gateway, UpstreamThread, open_gateway


class Office:
    """The operator's listener of a gateway, and the command beside it. `key`: whose it is where none is named."""

    def __init__(self, gateway: Gateway, trust: ssl.SSLContext | None = None) -> None:
        self.gateway = gateway
        self.key = gateway.key
        self.http = client(trust)

    def ask(self, method: str, path: str, body: Any = None, *, key: str | None = None, **query: Any) -> httpx.Response:
        return self.http.request(
            method,
            f"{self.gateway.operator_url}/admin/v1{path}",
            json=body,
            params=query or None,
            headers={"Authorization": f"Bearer {self.key if key is None else key}"},
        )

    def data(self, method: str, path: str, body: Any = None, *, key: str | None = None, **query: Any) -> Any:
        """What an answer that succeeds holds."""
        answer = self.ask(method, path, body, key=key, **query)
        assert answer.status_code < 300, answer.text
        return answer.json()["data"]

    def cli(self, *words: str) -> list[dict[str, Any]]:
        """The JSON of a command that succeeds."""
        env = {**os.environ, "CONTRACT_ADMIN_KEY": self.gateway.key, "CONTRACT_USER_KEY": self.gateway.user_key}
        env["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(
            [sys.executable, "-m", "appliance.cli", *words, "--json", "--data-dir", str(self.gateway.data_dir)],
            cwd=self.gateway.folder,
            env=env,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        found: list[dict[str, Any]] = json.loads(done.stdout)["data"]
        return found

    def chat(self, key: str, model: str = "ok", **headers: str) -> httpx.Response:
        """One question at the public listener."""
        return self.http.post(
            f"{self.gateway.url}/v1/chat/completions",
            json={"model": model, "messages": [{"role": "user", "content": "Hi"}]},
            headers={
                "Authorization": f"Bearer {key}",
                **{name.replace("_", "-"): text for name, text in headers.items()},
            },
        )

    def row(self, answer: httpx.Response) -> dict[str, Any]:
        """What is on record of an answer."""
        found: dict[str, Any] = self.data("GET", f"/requests/{answer.headers['x-request-id']}")
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Bodies of the ledger's events of a kind, oldest first."""
        return [record["body"] for record in self.data("GET", "/ledger", kind=kind, limit=1000)]


def client(trust: ssl.SSLContext | None = None) -> httpx.Client:
    """trust: whom it believes, and what it shows of itself, where the gateway speaks TLS."""
    return httpx.Client(timeout=60.0, trust_env=False, verify=trust if trust is not None else False)


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def open_office(
    folder: Path, *, trust: ssl.SSLContext | None = None, env: dict[str, str] | None = None, **settings: Any
) -> Iterator[Office]:
    """A gateway over the fake upstream alone, less models: routes `ok` and `held` on the box, `far` in a cloud."""
    with UpstreamThread() as upstream:
        lab = {"name": "lab", "kind": "openai", "zone": "on_box", "base_url": upstream.url}
        far = {"name": "far", "kind": "openai", "zone": "cloud", "base_url": upstream.url}
        both = [{"provider": "lab", "model": "ok"}, {"provider": "far", "model": "ok"}]
        document = {
            "deployments": [],
            "providers": [lab, far],
            "routes": [
                {"model": "ok", "retries": 0, "targets": [{"provider": "lab", "model": "ok"}]},
                {"model": "far", "retries": 0, "targets": [{"provider": "far", "model": "ok"}]},
                {"model": "both", "retries": 0, "targets": both},
            ],
            **settings,
        }
        with open_gateway(folder, document, env=env) as gateway:
            office = Office(gateway, trust)
            try:
                yield office
            finally:
                office.http.close()
