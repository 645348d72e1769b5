"""The hunt for canaries finds what it has to, and a gateway in trouble leaves none behind."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.door.access_log import AccessLog
from appliance.door.http import Limits
from appliance.identity.keys import new_key
from appliance.redact import Secrets
from appliance.telemetry.logs import install
from appliance.telemetry.metrics import Known, Ledger, Metrics, Sources
from tests.fakes.house import ADMIN_KEY, UPSTREAM_KEY, USER_KEY, open_house
from tests.telemetry.canaries import Hunt

CANARY = new_key(lambda count: bytes(range(100, 100 + count)))


@pytest.mark.parametrize(
    "spell",
    [
        str,
        json.dumps,
        quote,
        lambda key: f"user:{key}",
        lambda key: base64.b64encode(f"user:{key}".encode()).decode(),
        lambda key: base64.b64encode(f"users:{key}".encode()).decode(),
        lambda key: key.encode().hex(),
        lambda key: key.encode("utf-16"),
    ],
)
def test_every_spelling_is_found(spell: Callable[[str], str | bytes]) -> None:
    hunt = Hunt([CANARY])
    hunt.text("here", spell(CANARY))
    assert len(hunt.hits) == 1
    assert hunt.hits[0].startswith("here: canary 0 at ")
    assert CANARY not in str(hunt.hits)


@given(st.text(max_size=200), st.text(max_size=200))
def test_a_canary_is_found_in_any_company_and_nothing_else_is(before: str, after: str) -> None:
    hunt = Hunt([CANARY])
    hunt.text("without", before + after)
    assert hunt.hits == []
    hunt.text("with", before + CANARY + after)
    assert len(hunt.hits) == 1


def test_folders_are_searched_whole(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "outpost.db")
    database.execute("PRAGMA journal_mode=wal")
    database.execute("CREATE TABLE t (v)")
    database.execute("INSERT INTO t VALUES (?)", (CANARY,))
    database.commit()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "log.1.gz").write_bytes(gzip.compress(f"line {CANARY}".encode()))
    (tmp_path / "deep" / "bad.gz").write_bytes(b"\x1f\x8bnot really")
    (tmp_path / "clean.log").write_text("nothing")
    (tmp_path / "master.key").write_text(CANARY)
    hunt = Hunt([CANARY])
    hunt.folder(tmp_path)
    database.close()
    places = {Path(hit.partition(": ")[0].removesuffix(" (unpacked)")).name for hit in hunt.hits}
    assert places == {"outpost.db-wal", "log.1.gz"}
    assert hunt.looked_at >= 5


def test_a_hunt_for_nothing_is_refused() -> None:
    for canaries in ([], ["short"]):
        with pytest.raises(ValueError, match="canary"):
            Hunt(canaries)


async def test_a_gateway_that_is_asked_with_keys_everywhere_tells_none(tmp_path: Path) -> None:
    """Keys in every place that a client reaches; then every log, body, page and row is searched."""
    keys = [CANARY, USER_KEY, ADMIN_KEY, UPSTREAM_KEY]
    hunt, secrets, process_log = Hunt(keys), Secrets(), io.StringIO()
    secrets.add(UPSTREAM_KEY)
    undo = install("debug", "json", secrets, process_log)
    try:
        async with open_house(tmp_path) as house:
            lines: list[bytes] = []
            house.doors.change(Limits(), AccessLog(lines.append, lambda: 1.0, secrets.redact_again))
            for behaviour in ("401", "500", "cut-whole", "cut-before-token", "400"):
                house.route(f"to-{behaviour}", behaviour)
                for stream in (False, True):
                    answer = await house.chat(f"to-{behaviour}", stream=stream)
                    hunt.text(f"body of {behaviour}", await answer.read())
            said = [{"role": "user", "content": CANARY}]
            for answer in (
                await house.post("/v1/chat/completions", {"model": CANARY, "messages": said}),
                await house.post("/v1/chat/completions", {"model": "remote", "messages": said, CANARY: CANARY}),
                await house.post("/v1/chat/completions", {"model": "remote", "messages": said}, key=CANARY),
                await house.post("/v1/chat/completions", {"model": "remote", "messages": CANARY}),
                await house.post("/v1/chat/completions", {"model": "remote", "messages": said, "temperature": CANARY}),
                await house.post("/v1/models", {}, key=CANARY),
                await house.post(f"/v1/chat/completions?api_key={CANARY}", b"{" + CANARY.encode()),
            ):
                assert answer.status >= 400
                hunt.text("error body", await answer.read())
            logging.getLogger("outpost").error("seen %s", USER_KEY)
            await house.recorder.wait_for(8)
            metrics = Metrics(Sources(lambda: 0, lambda: Ledger(0, 0.0, True)), "0", known=Known(frozenset({"remote"})))
            for row in house.recorder.rows:
                metrics.observe(row)
                hunt.text("row", repr(row))
            hunt.text("/metrics", (await metrics.render(""))[0])
            house.doors._flush()
            hunt.text("access log", b"".join(lines))
            assert len(lines) > 0
    finally:
        undo()
    hunt.text("process log", process_log.getvalue())
    assert "seen" in process_log.getvalue()
    assert hunt.hits == []
    assert hunt.looked_at > 15
