"""The access log: what clients put into a path stays on its line, and credentials stay out."""

from __future__ import annotations

import json
from typing import Any

from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from appliance.door.access_log import AccessLog
from appliance.door.endpoint import Visit
from appliance.identity.keys import new_key
from appliance.identity.principal import Principal
from appliance.redact import REDACTED, Secrets

KEYS = st.binary(min_size=32, max_size=32).map(lambda raw: new_key(lambda _: raw))


async def note(path: str, *, key_name: str = "ci") -> dict[str, Any]:
    written: list[bytes] = []
    log = AccessLog(written.append, lambda: 1.0, Secrets().redact_again)
    visit = Visit(make_mocked_request("GET", path), "id", 0.0)
    visit.principal = Principal("key_1", key_name, "member")
    log.note(visit, "127.0.0.1", 404, 0.5)
    log.flush()
    (line,) = b"".join(written).splitlines()
    told: dict[str, Any] = json.loads(line)
    return told


@given(KEYS, st.integers(0, 260), st.sampled_from(["/v1/models/{}", "/{}/x", "/x?api_key={}", "/a%20{}", "//{}"]))
async def test_a_key_in_a_path_is_not_told_wherever_it_is_cut(key: str, before: int, path: str) -> None:
    told = await note("/" + "a" * before + path.format(key))
    assert key[:8] not in told["path"]
    assert len(told["path"]) <= 256


@given(KEYS)
async def test_an_escaped_key_is_a_key(key: str) -> None:
    escaped = "".join(f"%{ord(char):02x}" for char in key)
    told = await note(f"/v1/models/{escaped}")
    assert told["path"] == f"/v1/models/{REDACTED}"
    assert escaped not in json.dumps(told)


@given(KEYS)
async def test_a_key_that_was_named_after_itself(key: str) -> None:
    assert (await note("/v1/models", key_name=key))["key"] == REDACTED


async def test_a_name_that_turns_out_to_be_a_secret_is_not_told_again() -> None:
    written: list[bytes] = []
    secrets = Secrets()
    log = AccessLog(written.append, lambda: 1.0, secrets.redact_again)
    visit = Visit(make_mocked_request("GET", "/v1/models"), "id", 0.0)
    visit.principal = Principal("key_1", "hunter2-hunter2", "member")
    log.note(visit, "127.0.0.1", 200, 0.5)
    log.flush()
    secrets.add("hunter2-hunter2")
    log.note(visit, "127.0.0.1", 200, 0.5)
    log.flush()
    assert [json.loads(line)["key"] for line in written] == ["hunter2-hunter2", REDACTED]


async def test_common_paths_stay_as_they_are() -> None:
    for path in ("/v1/chat/completions", "/v1/models/gpt-4o-mini", "/admin/v1/keys/key_ABCDEFGHIJKLMNOP", "/a%20b"):
        assert (await note(path))["path"] == path
