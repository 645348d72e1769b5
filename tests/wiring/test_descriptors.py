"""The limit of open files: raised as far as the settings need it, and a word where that is not far enough."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import descriptors
from tests.gateway import ROOT, Gateway

LIMIT = resource.RLIMIT_NOFILE


def limited(soft: int, hard: int, code: str) -> list[int]:
    """What `code` prints in a process that starts with these limits."""
    done = subprocess.run(
        [sys.executable, "-c", f"import resource\nfrom appliance import descriptors as d\nprint({code})"],
        preexec_fn=lambda: resource.setrlimit(LIMIT, (soft, hard)),
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    found: list[int] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "then"),
    [
        (256, 4096, 1000, 1000),  # no further than needed: engines inherit it
        (256, 512, 1000, 512),
        (600, 4096, 500, 600),  # never lower
    ],
)
def test_the_limit_is_raised_as_far_as_needed(soft: int, hard: int, wanted: int, then: int) -> None:
    code = f"[d.make_room({wanted}), *resource.getrlimit(resource.RLIMIT_NOFILE)]"
    assert limited(soft, hard, code) == [then, then, hard]


def test_too_few_are_told_with_numbers_and_a_cure() -> None:
    wanted = descriptors.needed(4096, 2)
    assert wanted > 2 * 4096
    assert descriptors.shortage(4096, 2, wanted) is None
    told = descriptors.shortage(4096, 2, 1024) or ""
    assert told.startswith(f"server.max_connections: 4096 connections may need {wanted} open files")
    assert f"LimitNOFILE={wanted}" in told
    fits = int(told.rpartition("max_connections: ")[2])
    assert descriptors.shortage(fits, 2, 1024) is None
    assert descriptors.shortage(fits + 1, 2, 1024) is not None


def test_a_limit_too_low_for_anything_still_gives_a_number_that_the_file_takes() -> None:
    assert (descriptors.shortage(10, 1, 64) or "").endswith("write max_connections: 1")


async def test_the_gateway_raises_its_limit_and_warns_where_it_cannot(tmp_path: Path) -> None:
    """At the start, and again when a reload asks for more."""
    gateway = Gateway(tmp_path, {"deployments": [], "routes": [], "server": {"max_connections": 100}})
    before = resource.getrlimit(LIMIT)
    wanted, most = descriptors.needed(100, 0), descriptors.needed(1000, 0)
    try:
        resource.setrlimit(LIMIT, (min(before[0], wanted - 1), before[1]))
        gateway.start(ready=False)
    finally:
        resource.setrlimit(LIMIT, before)
    try:
        assert resource.prlimit(gateway.pid, LIMIT)[0] == wanted
        assert "open files" not in gateway.log()
        resource.prlimit(gateway.pid, LIMIT, (wanted, wanted))
        gateway.write_settings({"deployments": [], "routes": [], "server": {"max_connections": 1000}})
        await asyncio.to_thread(gateway.control.call, "POST", "/admin/v1/reload")
        (line,) = [json.loads(line) for line in gateway.log().splitlines() if "open files" in line]
        assert line["level"] == "warning"
        assert f"may need {most} open files" in line["event"]
        assert f"may open {wanted} " in line["event"]
    finally:
        gateway.kill()
