"""What a store of responses is made of: lists of items, and compacted conversations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.dialects import chat
from appliance.dialects.responses import request as responses
from appliance.dialects.responses.compact import compact_answer, compact_request, parse_compact
from appliance.dialects.responses.listing import items_of, output_items, page
from appliance.dialects.responses.request import ResponsesRequest, canonical, resolve
from appliance.dialects.tally import Tally
from appliance.errors import BadRequest, UnsupportedParameter
from tests.dialects.responses_samples import CALLED, ID, SAID, STREAM_SHAPES, THOUGHT, mistakes

USER = {"role": "user", "content": "Hi"}
OUTPUT = {"type": "function_call_output", "call_id": "call_0", "output": "42"}
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed"}


def native(**fields: Any) -> ResponsesRequest:
    made = responses.parse(json.dumps({"model": "m", "input": "Hi", **fields}).encode()).native
    assert isinstance(made, ResponsesRequest)
    return made


def test_a_text_is_an_item() -> None:
    (item,) = items_of(native(), ID)
    assert item == {
        "id": f"msg_{ID[5:]}_in0", "type": "message", "role": "user", "status": "completed",
        "content": [{"type": "input_text", "text": "Hi"}],
    }  # fmt: skip
    assert mistakes(item, "ItemField") == []


def test_items_in_their_full_form() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:x", "detail": "auto"}]},
        {"role": "assistant", "content": "Hm."},
        {"type": "reasoning", "summary": [], "encrypted_content": None},
        CALLED[0],
        OUTPUT,
        SAID,
    ]
    listed = items_of(native(input=items), ID)
    for item in listed:
        assert mistakes(item, "ItemField") == []
    assert [item["id"] for item in listed] == [
        f"msg_{ID[5:]}_in0", f"msg_{ID[5:]}_in1", f"rs_{ID[5:]}_in2", "fc_0", f"fco_{ID[5:]}_in4", "msg_up",
    ]  # fmt: skip
    assert listed == items_of(native(input=items), ID)
    assert canonical(native(input=listed)) == canonical(native(input=items))
    assert items_of(native(input=[SEARCH]), ID) == [SEARCH]


def test_a_conversation_goes_on_from_what_was_kept() -> None:
    first = native()
    answer = STREAM_SHAPES[-1]["response"]
    earlier = [*items_of(first, ID), *output_items(answer)]
    outputs = [OUTPUT, {**OUTPUT, "call_id": "call_1"}]
    request = canonical(native(previous_response_id=ID, input=outputs), earlier)
    assert [type(message).__name__ for message in request.messages] == [
        "UserMessage", "AssistantMessage", "ToolMessage", "ToolMessage",
    ]  # fmt: skip
    said = request.messages[1]
    assert isinstance(said, chat.AssistantMessage)
    assert said.content == "Höi!"
    assert said.reasoning_details == [
        {"type": "reasoning.summary", "summary": "One.\n\nTwo."},
        {"type": "reasoning.encrypted", "data": "openai-responses:rs_up:ENC"},
    ]


def test_pages() -> None:
    items = [{"id": f"i{n}"} for n in range(5)]
    whole = page(items, order="asc", limit=5)
    assert (whole["object"], whole["data"], whole["has_more"]) == ("list", items, False)
    first = page(items, limit=2)
    assert [item["id"] for item in first["data"]] == ["i4", "i3"]
    assert (first["first_id"], first["last_id"], first["has_more"]) == ("i4", "i3", True)
    rest = page(items, after="i3", limit=100)
    assert [item["id"] for item in rest["data"]] == ["i2", "i1", "i0"]
    assert page([], order="asc")["first_id"] is None
    for wrong, param in (({"limit": 0}, "limit"), ({"limit": 101}, "limit"), ({"after": "x"}, "after")):
        with pytest.raises(BadRequest) as caught:
            page(items, **wrong)  # type: ignore[arg-type]
        assert caught.value.param == param


def compact(**fields: Any) -> ResponsesRequest:
    return parse_compact(json.dumps({"model": "m", **fields}).encode()).as_request()


def test_a_conversation_is_summed_up() -> None:
    asked = compact(input=[USER, THOUGHT, *CALLED, OUTPUT, SEARCH, SAID], instructions="Be kind.")
    request = compact_request(asked)
    assert request.model == "m"
    system, user = request.messages
    assert isinstance(system, chat.SystemMessage)
    assert isinstance(user, chat.UserMessage)
    assert user.content == (
        "The record:\n\n[system] Be kind.\n\n[user] Hi\n\n[assistant calls f as call_0] {\"a\":1}\n\n"
        "[assistant calls f as call_1] {\"a\":1}\n\n[result of call_0] 42\n\n"
        '[web_search_call] {"type":"web_search_call","id":"ws_1","status":"completed"}\n\n'
        "[assistant] Höi!\n\nThe summary:"
    )  # fmt: skip


@pytest.mark.parametrize(("size", "most"), [(2, 1024), (8 * 1024, 1026), (16_000, 2002), (1_000_000, 4096)])
def test_a_summary_is_shorter_than_what_it_sums_up(size: int, most: int) -> None:
    assert compact_request(compact(input="x" * size)).max_completion_tokens == pytest.approx(most, abs=4)
    assert compact_request(compact(input="ä" * (size // 2))).max_completion_tokens == pytest.approx(most, abs=4)


def test_what_was_compacted_is_gone_on_from() -> None:
    asked = compact(input=[USER, SAID, {"role": "user", "content": "Bye"}])
    sealed: dict[str, str] = {}

    def seal(text: str) -> str:
        sealed["x"] = text
        return "x"

    answer = compact_answer(ID, 5, asked, "They met.", Tally(7, 0, 0, 3), seal)
    assert mistakes(answer, "CompactResource") == []
    assert [item["type"] for item in answer["output"]] == ["message", "message", "compaction"]
    assert (answer["object"], answer["created_at"]) == ("response.compaction", 5)
    assert "They met." not in json.dumps(answer)
    again = native(input=[*answer["output"], {"role": "user", "content": "Hi again"}])
    messages = canonical(again, opened=sealed.get).messages
    assert [type(message).__name__ for message in messages] == [
        "UserMessage", "UserMessage", "AssistantMessage", "UserMessage",
    ]  # fmt: skip
    assert "They met." in str(messages[2].content)
    resolved = resolve(again, opened=sealed.get)
    assert list(responses.native_needs(resolved)) == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None, "input": "x"}, "model"),
        ({}, "input"),
        ({"input": "x", "temperature": 1}, "temperature"),
        ({"input": [{"type": "dance"}]}, "input[0].type"),
        ({"input": "x", "service_tier": "gold"}, "service_tier"),
    ],
)
def test_requests_to_compact_that_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises((BadRequest, UnsupportedParameter)) as caught:
        compact(**fields)
    assert caught.value.param == param


def test_another_makers_summary_is_not_summed_up_again() -> None:
    with pytest.raises(BadRequest) as caught:
        compact_request(compact(input=[{"type": "compaction", "encrypted_content": "theirs"}, USER]))
    assert caught.value.param == "input[0]"
