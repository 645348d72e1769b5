"""Streams as Anthropic sends them, written by hand after its documentation, and events to write messages from."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from appliance.dialects.answer import Frame
from appliance.dialects.chat import ChatRequest, UserMessage
from appliance.dialects.messages.answer import MessagesStream, MessagesWhole
from appliance.dialects.messages.reader import MessagesReader
from appliance.dialects.sse import NamedFramer
from appliance.dialects.tally import Tally
from runtimes import engine as e
from tests.dialects.anthropic_shapes import complaints

FRAME = Frame("msg_1", 1_700_000_000, "claude", ChatRequest("claude", [UserMessage("Hi")]))


def named(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields}, separators=(',', ':'))}\n\n".encode()


def start(**usage: Any) -> bytes:
    counts = {"input_tokens": 10, "output_tokens": 1, **usage}
    message: dict[str, Any] = {
        "id": "msg_up",
        "type": "message",
        "role": "assistant",
        "model": "claude-up",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": counts,
    }
    return named("message_start", message=message)


def begin(index: int, kind: str, **fields: Any) -> bytes:
    return named("content_block_start", index=index, content_block={"type": kind, **fields})


def delta(index: int, kind: str, **fields: Any) -> bytes:
    return named("content_block_delta", index=index, delta={"type": kind, **fields})


def stop(index: int) -> bytes:
    return named("content_block_stop", index=index)


def stopped(reason: str | None, sequence: str | None = None, details: Any = None, **usage: Any) -> bytes:
    told = {"stop_reason": reason, "stop_sequence": sequence, **({"stop_details": details} if details else {})}
    return named("message_delta", delta=told, usage={"output_tokens": 7, **usage})


PING = named("ping")
END = named("message_stop")

HELLO = [
    start(),
    begin(0, "text", text=""),
    PING,
    delta(0, "text_delta", text="Hel"),
    delta(0, "text_delta", text="lo 🌍"),
    stop(0),
    stopped("end_turn"),
    END,
]
RICH = [
    start(cache_read_input_tokens=100, cache_creation_input_tokens=20),
    begin(0, "thinking", thinking="", signature=""),
    delta(0, "thinking_delta", thinking="Let me "),
    PING,
    delta(0, "thinking_delta", thinking="see."),
    delta(0, "signature_delta", signature="EqQBCg=="),
    stop(0),
    begin(1, "redacted_thinking", data="EmwKAhgB"),
    stop(1),
    begin(2, "text", text=""),
    delta(2, "text_delta", text="I ask."),
    stop(2),
    begin(3, "tool_use", id="toolu_a", name="weather", input={}),
    delta(3, "input_json_delta", partial_json=""),
    delta(3, "input_json_delta", partial_json='{"city": "Pa'),
    delta(3, "input_json_delta", partial_json='ris"}'),
    stop(3),
    begin(4, "tool_use", id="toolu_b", name="clock", input={}),
    delta(4, "input_json_delta", partial_json=""),
    stop(4),
    stopped("tool_use", output_tokens=89, output_tokens_details={"thinking_tokens": 12}),
    END,
]
"""Thinking, parallel calls, and counts of the cache."""
RICH_EVENTS: list[e.Event] = [
    e.Delta(reasoning="Let me see."),
    e.Delta(reasoning_signature="EqQBCg=="),
    e.Delta(reasoning_data="EmwKAhgB"),
    e.Delta(text="I ask."),
    e.Delta(tool_calls=[e.ToolCallDelta(0, "toolu_a", "weather", '{"city": "Paris"}')]),
    e.Delta(tool_calls=[e.ToolCallDelta(1, "toolu_b", "clock", "{}")]),
    e.Finished("tool_calls"),
    e.Usage(130, 89, 100, reasoning_tokens=12, cache_write_tokens=20),
]


HELLO_EVENTS: list[e.Event] = [e.Delta(text="Hello 🌍"), e.Finished("stop"), e.Usage(10, 7)]


def call(index: int, arguments: str = "", name: str = "", id: str = "") -> e.Delta:
    return e.Delta(tool_calls=[e.ToolCallDelta(index, id, name, arguments)])


def merged(events: list[e.Event]) -> list[e.Event]:
    """The same events with all that belongs together in one."""
    out: list[e.Event] = []
    for item in events:
        if not isinstance(item, e.Delta):
            out.append(item)
            continue
        if item.reasoning:
            _add(out, "reasoning", item.reasoning)
        if item.reasoning_signature:
            out.append(e.Delta(reasoning_signature=item.reasoning_signature))
        if item.reasoning_data:
            out.append(e.Delta(reasoning_data=item.reasoning_data))
        for name in ("text", "refusal"):
            if getattr(item, name):
                _add(out, name, getattr(item, name))
        for piece in item.tool_calls:
            _call(out, piece)
    return out


def _add(out: list[e.Event], name: str, text: str) -> None:
    last = out[-1] if out else None
    if isinstance(last, e.Delta) and getattr(last, name):
        out[-1] = msgspec.structs.replace(last, **{name: getattr(last, name) + text})
    else:
        out.append(msgspec.structs.replace(e.Delta(), **{name: text}))


def _call(out: list[e.Event], piece: e.ToolCallDelta) -> None:
    for k, item in enumerate(out):
        if isinstance(item, e.Delta) and item.tool_calls and item.tool_calls[0].index == piece.index:
            old = item.tool_calls[0]
            joined = e.ToolCallDelta(
                old.index, old.id or piece.id, old.name or piece.name, old.arguments + piece.arguments
            )
            out[k] = e.Delta(tool_calls=[joined])
            return
    out.append(e.Delta(tool_calls=[piece]))


def read(pieces: list[bytes]) -> list[e.Event]:
    """What a reader makes of a stream, up to its end."""
    reader = MessagesReader("up")
    out: list[e.Event] = []
    for piece in pieces:
        out += reader.feed(piece)
    if not reader.done:
        out += reader.feed(b"")
    assert reader.done
    return out


def written(batches: list[list[e.Event]], tally: Tally | None = None) -> bytes:
    """The stream that is made of events, which is one that Anthropic could have sent."""
    answer = MessagesStream(FRAME, tally or Tally())
    sent = b"".join(answer.feed(batch) for batch in batches) + answer.end()
    check(sent)
    return sent


def whole(events: list[e.Event], tally: Tally | None = None) -> dict[str, Any]:
    answer = MessagesWhole(FRAME, tally or Tally())
    answer.feed(events)
    body: dict[str, Any] = json.loads(answer.body())
    assert complaints("Message", body) == []
    return body


def parsed(sent: bytes) -> list[dict[str, Any]]:
    found, verbatim = NamedFramer().feed(sent)
    assert verbatim
    return [json.loads(data) for data in found]


_DELTAS = {
    "text": {"text_delta"},
    "thinking": {"thinking_delta", "signature_delta"},
    "tool_use": {"input_json_delta"},
    "redacted_thinking": set[str](),
}


def check(sent: bytes) -> None:
    """That a stream keeps Anthropic's order: one block is open at a time, and each is closed before the end."""
    items = parsed(sent)
    names = [line[7:].decode() for line in sent.split(b"\n") if line.startswith(b"event: ")]
    assert names == [item["type"] for item in items]
    assert (names[0], *names[-2:]) == ("message_start", "message_delta", "message_stop")
    open_, last = "", -1
    for item in items:
        kind = item["type"]
        if kind == "content_block_start":
            assert not open_
            assert item["index"] == last + 1
            last, open_ = item["index"], item["content_block"]["type"]
        elif kind == "content_block_delta":
            assert item["index"] == last
            assert item["delta"]["type"] in _DELTAS[open_]
        elif kind == "content_block_stop":
            assert item["index"] == last
            assert open_
            open_ = ""
        elif kind != "ping":
            assert not open_
