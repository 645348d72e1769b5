"""A target that speaks the client's dialect is asked in it, unless the client's own body is no more what is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.dialects.kinds import KINDS
from appliance.dialects.tally import Tally
from appliance.providers.connect import connect
from appliance.providers.http import make_session
from appliance.providers.kinds import make_upstream
from appliance.providers.upstream import Call
from appliance.settings import Provider
from tests.fakes.behaviours import capable
from tests.fakes.sink import taken
from tests.fakes.upstream import FakeUpstream

BODIES: dict[str, dict[str, Any]] = {
    "responses": {"input": "What is the capital of France?"},
    "messages": {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 50},
}
PROVIDERS = {"responses": "openai", "messages": "anthropic"}
PATHS = {
    ("responses", True): "/v1/responses",
    ("responses", False): "/v1/chat/completions",
    ("messages", True): "/v1/messages",
    ("messages", False): "/v1/messages",
}


@pytest.mark.parametrize("own", [True, False], ids=["own-body", "another"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", BODIES)
async def test_the_answer_is_the_clients_in_any_case(kind: str, stream: bool, own: bool) -> None:
    asked = KINDS[kind].parse(json.dumps({"model": "m", "stream": stream, **BODIES[kind]}).encode(), 64)
    call = Call("1", 0, KINDS[kind], asked.request, "m", "p", 1.0, Tally(), native=asked.native if own else None)
    async with FakeUpstream() as fake, make_session() as session:
        fake.behave("able", capable)
        settings = Provider.model_validate(
            {"name": "lab", "kind": PROVIDERS[kind], "base_url": fake.url, "api_key": {"env": "KEY"}}
        )
        connection = connect(settings, {"KEY": "sk-key-of-the-provider"}, session)
        upstream = make_upstream("lab/able", model="able", connection=connection, session=session)
        answer = await taken(await upstream.stream(call)) if stream else await upstream.whole(call)
        assert fake.seen[0].path == PATHS[kind, own]
    assert b"Paris" in answer
    form = {"responses": b"output_text", "messages": b"text_delta" if stream else b'"type":"message"'}[kind]
    assert form in answer.replace(b'": "', b'":"')
    assert call.tally.source == "reported"
