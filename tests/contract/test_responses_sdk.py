"""OpenAI's own Python client at the Responses API of the gateway, before every kind of provider."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import FunctionToolParam, Response
from pydantic import BaseModel

from tests.contract.able import KINDS, Able, route

PARIS = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city now.",
    "strict": False,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CLOCK: FunctionToolParam = {
    **WEATHER,
    "name": "get_time",
    "description": "The time of day in a city.",
}
PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(32)).decode()


class Trip(BaseModel):
    """A journey."""

    city: str
    days: int


@pytest.fixture
def client(able: Able) -> Iterator[openai.OpenAI]:
    with able.gateway.openai() as client:
        yield client


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> str:
    return route(request.param)


# --- answers --------------------------------------------------------------------------------------


def test_a_response(client: openai.OpenAI, model: str) -> None:
    response = client.responses.create(model=model, input=PARIS, instructions="Be brief.")
    assert response.output_text == ANSWER
    assert (response.object, response.status, response.error) == ("response", "completed", None)
    assert response.usage
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.id.startswith("resp_")
    assert response._request_id


def test_the_stream_helper_puts_a_response_together(client: openai.OpenAI, model: str) -> None:
    whole = client.responses.create(model=model, input=PARIS)
    with client.responses.stream(model=model, input=PARIS) as stream:
        events = list(stream)
        response = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-1] == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert kinds.count("response.output_text.delta") > 1, "the text comes in pieces"
    assert response.output_text == whole.output_text == ANSWER
    assert response.usage is not None
    assert whole.usage is not None
    assert response.usage.output_tokens == whole.usage.output_tokens


async def test_the_asynchronous_client_says_the_same(able: Able, model: str) -> None:
    async with able.gateway.async_openai() as client:
        whole = await client.responses.create(model=model, input=PARIS)
        text = ""
        async for event in await client.responses.create(model=model, input=PARIS, stream=True):
            if event.type == "response.output_text.delta":
                text += event.delta
    assert whole.output_text == text == ANSWER


def test_items_as_input(client: openai.OpenAI, model: str) -> None:
    items: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "My name is Alice."},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hello Alice!", "annotations": []}],
        },
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is my name?"}]},
    ]
    assert client.responses.create(model=model, input=items).output_text == "Alice"


def test_most_tokens_leave_it_incomplete(client: openai.OpenAI, model: str) -> None:
    response = client.responses.create(model=model, input=PARIS, max_output_tokens=16)
    assert response.status == "completed"
    short = client.responses.create(model=model, input="Say " + "very " * 60 + "much", max_output_tokens=16)
    assert short.status == "incomplete"
    assert short.incomplete_details
    assert short.incomplete_details.reason == "max_output_tokens"


def test_an_image(client: openai.OpenAI, model: str) -> None:
    content: Any = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": PNG}]
    response = client.responses.create(model=model, input=[{"role": "user", "content": content}])
    assert response.output_text.startswith("I see 1 of what you sent")


def test_a_model_of_pydantic(client: openai.OpenAI, model: str) -> None:
    response = client.responses.parse(model=model, input="A trip to Rome for 3 days", text_format=Trip)
    assert response.output_parsed == Trip(city="Rome", days=3)
    with client.responses.stream(model=model, input="A trip to Rome for 3 days", text_format=Trip) as stream:
        assert stream.get_final_response().output_parsed == Trip(city="Rome", days=3)


def test_reasoning_comes_with_a_summary(client: openai.OpenAI, model: str) -> None:
    for stream in (False, True):
        fields: dict[str, Any] = {"model": model, "input": PARIS, "reasoning": {"effort": "low", "summary": "auto"}}
        if stream:
            with client.responses.stream(**fields) as opened:
                response: Response = opened.get_final_response()
        else:
            response = client.responses.create(**fields)
        thought, message = response.output
        assert thought.type == "reasoning"
        said = "".join(part.text for part in [*thought.summary, *(thought.content or [])])
        assert said.startswith("Let me look at this")
        assert message.type == "message"


# --- tools ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_loop_runs_to_its_answer(client: openai.OpenAI, model: str, stream: bool, chained: bool) -> None:
    """chained: the second request names the first response instead of repeating it."""

    def ask(**fields: Any) -> Response:
        fields = {"model": model, "tools": [WEATHER, CLOCK], **fields}
        if not stream:
            return client.responses.create(**fields)
        with client.responses.stream(**fields) as opened:
            final: Response = opened.get_final_response()
            return final

    asked: Any = [{"role": "user", "content": "Tell me both the weather and the time in Oslo"}]
    first = ask(input=asked)
    calls = [item for item in first.output if item.type == "function_call"]
    assert sorted((call.name, json.loads(call.arguments)["city"]) for call in calls) == [
        ("get_time", "Oslo"),
        ("get_weather", "Oslo"),
    ]
    results: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": call.name} for call in calls]
    if chained:
        last = ask(input=results, previous_response_id=first.id)
        assert last.previous_response_id == first.id
    else:
        last = ask(input=[*asked, *(item.to_dict() for item in first.output), *results])
    assert last.output_text == "The tool says: " + "; ".join(call.name for call in calls)


def test_a_tool_that_must_be_called(client: openai.OpenAI, model: str) -> None:
    response = client.responses.create(model=model, input="Hello!", tools=[WEATHER, CLOCK], tool_choice="required")
    assert response.output[-1].type == "function_call"


# --- what is stored -------------------------------------------------------------------------------


def test_a_response_is_kept_listed_and_deleted(client: openai.OpenAI, model: str) -> None:
    made = client.responses.create(model=model, input=PARIS)
    kept = client.responses.retrieve(made.id)
    assert kept.output_text == ANSWER
    assert (kept.id, kept.status, kept.model) == (made.id, "completed", made.model)
    (item,) = client.responses.input_items.list(made.id).data
    assert item.type == "message"
    assert item.content[0].text == PARIS  # type: ignore[union-attr]
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_a_streamed_response_is_kept_under_the_id_that_was_told(client: openai.OpenAI, model: str) -> None:
    with client.responses.stream(model=model, input=PARIS) as stream:
        ids = {event.response.id for event in stream if event.type in ("response.created", "response.completed")}
    (told,) = ids
    assert client.responses.retrieve(told).output_text == ANSWER


def test_what_is_not_to_be_stored_is_not(client: openai.OpenAI) -> None:
    made = client.responses.create(model=route("openai"), input=PARIS, store=False)
    assert made.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises((openai.NotFoundError, openai.BadRequestError)) as error:
        client.responses.create(model=route("openai"), input="Go on", previous_response_id=made.id)
    assert error.value.param == "previous_response_id"


def test_nobody_else_reads_it(able: Able, client: openai.OpenAI) -> None:
    made = client.responses.create(model=route("openai"), input=PARIS)
    with able.gateway.openai(api_key=able.gateway.user_key) as other, pytest.raises(openai.NotFoundError):
        other.responses.retrieve(made.id)


def test_in_the_background(client: openai.OpenAI) -> None:
    made = client.responses.create(model=route("openai"), input=PARIS, background=True)
    assert made.status in ("queued", "in_progress", "completed")
    end = time.monotonic() + 20
    while (kept := client.responses.retrieve(made.id)).status in ("queued", "in_progress"):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (kept.status, kept.output_text) == ("completed", ANSWER)


def test_a_conversation_is_compacted(client: openai.OpenAI, model: str) -> None:
    items: Any = [{"role": "user", "content": "My name is Alice."}, {"role": "assistant", "content": "Hello Alice!"}]
    compact = client.responses.compact(model=model, input=items)
    assert compact.object == "response.compaction"
    kinds = [item.type for item in compact.output]
    assert kinds.count("compaction") == 1
    more: Any = [*(item.to_dict() for item in compact.output), {"role": "user", "content": "What is my name?"}]
    assert client.responses.create(model=model, input=more).output_text == "Alice"


# --- errors ---------------------------------------------------------------------------------------


def test_a_wrong_key_and_a_wrong_model(able: Able, client: openai.OpenAI) -> None:
    with able.gateway.openai(api_key="op-wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.responses.create(model=route("openai"), input=PARIS)
    with pytest.raises(openai.NotFoundError) as error:
        client.responses.create(model="gpt-9", input=PARIS)
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "value": ({"temperature": 3}, "temperature"),
    "type": ({"extra_body": {"max_output_tokens": "many"}}, "max_output_tokens"),
    "unknown": ({"extra_body": {"colour": "red"}}, "colour"),
    "deep": ({"input": [{"role": "user", "content": 1}]}, "input[0].content"),
    "chain": ({"previous_response_id": "resp_nobody"}, "previous_response_id"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request(client: openai.OpenAI, name: str, stream: bool) -> None:
    fields, param = BAD[name]
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as error:
        client.responses.create(**{"model": route("openai"), "input": PARIS, "stream": stream, **fields})
    assert error.value.param == param


@pytest.mark.parametrize("kind", ["anthropic", "openai"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("behaviour", "raised"),
    [
        ("429-after", openai.RateLimitError),
        ("500", openai.InternalServerError),
        ("503", openai.InternalServerError),
        ("400", openai.BadRequestError),
        ("long-context", openai.BadRequestError),
        ("long-filtered", openai.BadRequestError),
    ],
)
def test_an_upstream_that_fails(
    client: openai.OpenAI, kind: str, stream: bool, behaviour: str, raised: type[openai.APIStatusError]
) -> None:
    with pytest.raises(raised) as error:
        client.responses.create(model=f"{kind}-{behaviour}", input=PARIS, stream=stream)
    assert "sk-" not in str(error.value)


@pytest.mark.parametrize("kind", ["anthropic", "openai"])
def test_a_stream_that_breaks_says_so(client: openai.OpenAI, kind: str) -> None:
    text, failed = "", False
    try:
        for event in client.responses.create(model=f"{kind}-cut", input=PARIS, stream=True):
            if event.type == "response.output_text.delta":
                text += event.delta
            assert event.type != "response.completed"
            failed = failed or event.type in ("response.failed", "error")
    except openai.APIError:
        failed = True
    assert text == "Hello, "
    assert failed
