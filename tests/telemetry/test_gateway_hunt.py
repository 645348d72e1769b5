"""The hunt that every gateway of the suite goes through can fail: a planted credential ends its test with an error."""

from __future__ import annotations

import base64
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from appliance.identity.keys import new_key
from tests.gateway import ADMIN_KEY, Gateway, open_gateway
from tests.telemetry.canaries import SecretFound

EMPTY: dict[str, Any] = {
    "deployments": [],
    "routes": [],
    "providers": [
        {
            "name": "lab",
            "kind": "openai",
            "zone": "on_box",
            "base_url": "http://127.0.0.1:1/v1",
            "api_key": {"env": "LAB_KEY"},
        }
    ],
}
LAB_KEY = "lab-0123456789-no-looks"
MADE = new_key(lambda count: bytes(range(count)))
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJlLXRoYXQtaXMtbG9uZw"


def in_stdout(gateway: Gateway) -> None:
    with gateway.stdout_path.open("a") as log:
        log.write(f'{{"path": "/v1/{MADE}"}}\n')


def in_stderr(gateway: Gateway) -> None:
    with gateway.stderr_path.open("a") as log:
        log.write(f"GET /callback?token={TOKEN}\n")


def in_engine_log(gateway: Gateway) -> None:
    folder = gateway.data_dir / "logs"
    folder.mkdir(exist_ok=True)
    (folder / "some.0.log").write_text(f"environment: {base64.b64encode(f'k={LAB_KEY}'.encode()).decode()}")


def in_database(gateway: Gateway) -> None:
    with closing(sqlite3.connect(gateway.data_dir / "outpost.db")) as database:
        database.execute("CREATE TABLE planted (v)")
        database.execute("INSERT INTO planted VALUES (?)", (ADMIN_KEY,))
        database.commit()


def master_key(gateway: Gateway) -> None:
    (gateway.data_dir / "copy").write_bytes((gateway.data_dir / "secrets" / "master.key").read_bytes())


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    """A gateway that has made a key, and in which nothing was found; what it left is there to be planted in."""
    with open_gateway(tmp_path_factory.mktemp("clean"), EMPTY, env={"LAB_KEY": LAB_KEY}) as gateway:
        (made,) = gateway.control.call("POST", "/admin/v1/keys", body={"name": "app"})
        assert gateway.http(headers={"Authorization": f"Bearer {made['key']}"}).get("/v1/models").status_code == 200
        assert gateway.stop() == 0
    return gateway


def test_a_clean_gateway_passes_quickly(ended: Gateway) -> None:
    began = time.thread_time()
    hunt = ended.hunt()
    assert time.thread_time() - began < 1.0
    assert hunt.hits == []
    assert hunt.looked_at >= 4
    assert LAB_KEY in ended.secrets


@pytest.mark.parametrize("plant", [in_stdout, in_stderr, in_engine_log, in_database, master_key])
def test_what_is_planted_is_found(ended: Gateway, plant: Callable[[Gateway], None]) -> None:
    before = {path: path.read_bytes() for path in ended.folder.rglob("*") if path.is_file()}
    plant(ended)
    try:
        with pytest.raises(SecretFound) as found:
            ended.hunt().check()
        for secret in (MADE, TOKEN, LAB_KEY, ADMIN_KEY):
            assert secret not in str(found.value)
    finally:
        for path in ended.folder.rglob("*"):
            if path.is_file():
                path.write_bytes(before[path]) if path in before else path.unlink()
    assert ended.hunt().hits == []


def test_a_gateway_with_a_credential_in_its_log_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(SecretFound, match=r"stdout\.log: a key of ours"):  # noqa: SIM117 - the inner one must end first
        with open_gateway(tmp_path, EMPTY, env={"LAB_KEY": LAB_KEY}) as gateway:
            in_stdout(gateway)


def test_answers_are_searched(tmp_path: Path) -> None:
    with open_gateway(tmp_path, EMPTY, env={"LAB_KEY": LAB_KEY}) as gateway:
        hunt = gateway.hunt_answers()
        assert hunt.hits == []
        assert hunt.looked_at > 20
        gateway.secrets.add("contract-admin")  # a name, which the list of keys shows
        assert any("/admin/v1/keys" in hit for hit in gateway.hunt_answers().hits)
        gateway.secrets.remove("contract-admin")
