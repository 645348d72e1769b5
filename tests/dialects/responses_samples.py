"""What the tests of the Responses dialect share: frames, events, samples of real streams, and the outside specs."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import strategies as st

from appliance.dialects.answer import Frame
from appliance.dialects.responses import request as responses
from runtimes.engine import Delta, Event, Finished, ToolCallDelta, Usage

ID = "resp_01h455vb4pex5vsknk084sn02q"
NOW = 1_700_000_100.7


def wall() -> float:
    return NOW


def frame(**fields: Any) -> Frame:
    asked = responses.parse(json.dumps({"model": "m", "input": "Hi", **fields}).encode())
    return Frame(ID, 1_700_000_000, "m", asked.request, asked.native)


@cache
def _open_spec() -> dict[str, Any]:
    found = importlib.util.find_spec("llm_comply")
    assert found is not None
    assert found.origin is not None
    return dict(json.loads((Path(found.origin).parent / "specs" / "openresponses.json").read_text()))


@cache
def _validator(name: str) -> Any:
    spec = _open_spec()
    schema = {"$ref": f"#/components/schemas/{name}", "components": spec["components"]}
    return jsonschema.Draft202012Validator(schema)


NAMES = {
    "response.created": "ResponseCreatedStreamingEvent",
    "response.in_progress": "ResponseInProgressStreamingEvent",
    "response.completed": "ResponseCompletedStreamingEvent",
    "response.failed": "ResponseFailedStreamingEvent",
    "response.incomplete": "ResponseIncompleteStreamingEvent",
    "response.output_item.added": "ResponseOutputItemAddedStreamingEvent",
    "response.output_item.done": "ResponseOutputItemDoneStreamingEvent",
    "response.content_part.added": "ResponseContentPartAddedStreamingEvent",
    "response.content_part.done": "ResponseContentPartDoneStreamingEvent",
    "response.output_text.delta": "ResponseOutputTextDeltaStreamingEvent",
    "response.output_text.done": "ResponseOutputTextDoneStreamingEvent",
    "response.refusal.delta": "ResponseRefusalDeltaStreamingEvent",
    "response.refusal.done": "ResponseRefusalDoneStreamingEvent",
    "response.reasoning_summary_part.added": "ResponseReasoningSummaryPartAddedStreamingEvent",
    "response.reasoning_summary_part.done": "ResponseReasoningSummaryPartDoneStreamingEvent",
    "response.reasoning_summary_text.delta": "ResponseReasoningSummaryDeltaStreamingEvent",
    "response.reasoning_summary_text.done": "ResponseReasoningSummaryDoneStreamingEvent",
    "response.function_call_arguments.delta": "ResponseFunctionCallArgumentsDeltaStreamingEvent",
    "response.function_call_arguments.done": "ResponseFunctionCallArgumentsDoneStreamingEvent",
    "error": "ErrorStreamingEvent",
}
"""Events and their schemas in the specification of Open Responses. Reasoning in full is missing: it is called otherwise
there than at OpenAI, whose names are used."""


def mistakes(shape: Any, name: str) -> list[str]:
    return [f"{list(error.absolute_path)}: {error.message}" for error in _validator(name).iter_errors(shape)]


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """The data of each event; the type before it has to be the one in it."""
    found: list[dict[str, Any]] = []
    for block in stream.decode().split("\n\n")[:-1]:
        kind, data = block.split("\n")
        shape = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {shape['type']}"
        found.append(shape)
    return found


def check_stream(shapes: list[dict[str, Any]]) -> None:
    """By the specification: each event, and their order."""
    for shape in shapes:
        if (name := NAMES.get(shape["type"])) is not None:
            assert mistakes(shape, name) == []
    check_order(shapes)


def check_order(shapes: list[dict[str, Any]]) -> None:
    assert [shape["sequence_number"] for shape in shapes] == list(range(len(shapes)))
    assert [shape["type"] for shape in shapes[:2]] == ["response.created", "response.in_progress"]
    opened: list[int] = []
    closed: list[int] = []
    for shape in shapes:
        if shape["type"] == "response.output_item.added":
            assert shape["output_index"] == len(opened)
            opened.append(shape["output_index"])
        elif shape["type"] == "response.output_item.done":
            closed.append(shape["output_index"])
        elif "output_index" in shape:
            assert shape["output_index"] in opened
            assert shape["output_index"] not in closed
    assert sorted(closed) == opened


def usage(prompt: int = 7, completion: int = 5, cached: int = 2, reasoning: int = 1) -> Usage:
    return Usage(prompt, completion, cached, reasoning_tokens=reasoning)


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
opaque = st.text("abcdefXYZ0123/+=", min_size=1, max_size=12)


@st.composite
def answers(draw: st.DrawFn, *, signatures: bool = True) -> list[Event]:
    """The events of a whole answer: thoughts, words, refusals and calls, which may be interleaved."""
    made: list[Event] = []
    for _ in range(draw(st.integers(0, 2))):
        for text in draw(st.lists(words, min_size=1, max_size=3)):
            made.append(Delta(reasoning=text))
        if signatures and draw(st.booleans()):
            made.append(Delta(reasoning_signature=draw(opaque)))
        if draw(st.booleans()):
            made.append(Delta(reasoning_data=f"openai-responses:rs_{draw(opaque)}:{draw(opaque)}"))
    for text in draw(st.lists(words, max_size=4)):
        made.append(Delta(text=text))
    if draw(st.booleans()):
        made += [Delta(refusal=text) for text in draw(st.lists(words, min_size=1, max_size=2))]
    count = draw(st.integers(0, 3))
    for index in range(count):
        made.append(Delta(tool_calls=[ToolCallDelta(index, f"call_{index}", f"f{index}")]))
        for text in draw(st.lists(words, max_size=3)):
            at = draw(st.integers(0, index))
            made.append(Delta(tool_calls=[ToolCallDelta(at, arguments=text)]))
    if not any(isinstance(each, Delta) and (each.text or each.refusal or each.tool_calls) for each in made):
        made.append(Delta(text="x"))
    reason: Any = draw(st.sampled_from(["length", "content_filter", "tool_calls" if count else "stop"]))
    return [*made, Finished(reason), usage()]


def merged(events: list[Event]) -> list[Any]:
    """What the events say, however it was cut: neighbours of a kind are glued together, calls gathered."""
    said: list[list[Any]] = []
    calls: dict[int, list[str]] = {}
    for each in events:
        if not isinstance(each, Delta):
            said.append([each])
            continue
        for kind in ("reasoning", "reasoning_signature", "reasoning_data", "text", "refusal"):
            if value := getattr(each, kind):
                if said and said[-1][0] == kind and kind in ("reasoning", "text", "refusal"):
                    said[-1][1] += value
                else:
                    said.append([kind, value])
        for piece in each.tool_calls:
            call = calls.setdefault(piece.index, ["", "", ""])
            call[0] += piece.id
            call[1] += piece.name
            call[2] += piece.arguments
    return [*said, sorted(calls.items())]


def sse(*shapes: dict[str, Any], numbered: bool = True) -> bytes:
    """Events as OpenAI writes them."""
    out = b""
    for number, shape in enumerate(shapes):
        told = {**shape, "sequence_number": number} if numbered else shape
        out += f"event: {shape['type']}\ndata: {json.dumps(told)}\n\n".encode()
    return out


def resource(status: str, output: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "id": "resp_up", "object": "response", "created_at": 1, "status": status, "model": "gpt-up", "store": False,
        "output": output, "error": None, "incomplete_details": None, "previous_response_id": None, "usage": None,
        "background": False, **more,
    }  # fmt: skip


USED = {
    "input_tokens": 20, "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 3}, "total_tokens": 29,
}  # fmt: skip
THOUGHT = {"id": "rs_up", "type": "reasoning", "summary": [{"type": "summary_text", "text": "One.\n\nTwo."}],
           "encrypted_content": "ENC"}  # fmt: skip
SAID = {"id": "msg_up", "type": "message", "status": "completed", "role": "assistant",
        "content": [{"type": "output_text", "text": "Höi!", "annotations": [], "logprobs": []}]}  # fmt: skip
SEARCHED = {"id": "ws_up", "type": "web_search_call", "status": "completed", "action": {"type": "search"}}
CALLED = [{"id": f"fc_{i}", "type": "function_call", "status": "completed", "call_id": f"call_{i}", "name": "f",
           "arguments": '{"a":1}'} for i in range(2)]  # fmt: skip

STREAM_SHAPES: list[dict[str, Any]] = [
    {"type": "response.created", "response": resource("in_progress", [])},
    {"type": "response.in_progress", "response": resource("in_progress", [])},
    {"type": "response.output_item.added", "output_index": 0, "item": {**THOUGHT, "summary": []}},
    {"type": "response.reasoning_summary_part.added", "item_id": "rs_up", "output_index": 0, "summary_index": 0,
     "part": {"type": "summary_text", "text": ""}},
    {"type": "response.reasoning_summary_text.delta", "item_id": "rs_up", "output_index": 0, "summary_index": 0,
     "delta": "One."},
    {"type": "response.reasoning_summary_text.delta", "item_id": "rs_up", "output_index": 0, "summary_index": 1,
     "delta": "Two."},
    {"type": "response.output_item.done", "output_index": 0, "item": THOUGHT},
    {"type": "response.output_item.added", "output_index": 1, "item": {**SEARCHED, "status": "in_progress"}},
    {"type": "response.web_search_call.searching", "output_index": 1, "item_id": "ws_up"},
    {"type": "response.output_item.done", "output_index": 1, "item": SEARCHED},
    {"type": "response.output_item.added", "output_index": 2, "item": {**SAID, "content": []}},
    {"type": "response.content_part.added", "item_id": "msg_up", "output_index": 2, "content_index": 0,
     "part": {"type": "output_text", "text": "", "annotations": []}},
    {"type": "response.output_text.delta", "item_id": "msg_up", "output_index": 2, "content_index": 0, "delta": "Hö",
     "logprobs": [], "obfuscation": "x"},
    {"type": "keepalive"},
    {"type": "response.output_text.delta", "item_id": "msg_up", "output_index": 2, "content_index": 0, "delta": "i!",
     "logprobs": []},
    {"type": "response.output_text.done", "item_id": "msg_up", "output_index": 2, "content_index": 0, "text": "Höi!",
     "logprobs": []},
    {"type": "response.output_item.done", "output_index": 2, "item": SAID},
    {"type": "response.output_item.added", "output_index": 3, "item": {**CALLED[0], "arguments": ""}},
    {"type": "response.output_item.added", "output_index": 4, "item": {**CALLED[1], "arguments": ""}},
    {"type": "response.function_call_arguments.delta", "item_id": "fc_0", "output_index": 3, "delta": '{"a"'},
    {"type": "response.function_call_arguments.delta", "item_id": "fc_0", "output_index": 3, "delta": ":1}"},
    {"type": "response.function_call_arguments.done", "item_id": "fc_1", "output_index": 4, "arguments": '{"a":1}'},
    {"type": "response.output_item.done", "output_index": 3, "item": CALLED[0]},
    {"type": "response.output_item.done", "output_index": 4, "item": CALLED[1]},
    {"type": "response.completed",
     "response": resource("completed", [THOUGHT, SEARCHED, SAID, *CALLED], usage=USED, completed_at=2)},
]  # fmt: skip
"""What OpenAI sends for thoughts, a search of its own, words and two calls."""
STREAM = sse(*STREAM_SHAPES)
