"""The fake upstream's Bedrock Converse, with frames of Amazon's event stream."""

from __future__ import annotations

import json
from typing import Any

from tests.fakes.event_stream import event
from tests.fakes.replies import Seen
from tests.fakes.talk import Call, Question, Said, Spoken, Tool, Turn
from tests.fakes.tongue import Tongue, Wrong, dump, halves

STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "content_filtered"}
KINDS = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}


def event_frame(data: bytes, eol: bytes = b"") -> bytes:
    """A frame from the JSON of {event type: payload}; what is no such JSON becomes a frame with wrong sums."""
    try:
        ((kind, payload),) = json.loads(data).items()
        body = dump(payload)
    except (ValueError, AttributeError):
        return event("nonsense", data)[:-4] + b"\0\0\0\0"
    return event(kind, body)


def _turn(message: dict[str, Any]) -> Turn:
    turn = Turn(message["role"])
    for block in message["content"]:
        if "text" in block:
            turn.text += block["text"]
        elif "toolUse" in block:
            use = block["toolUse"]
            turn.calls.append(Call(use["toolUseId"], use["name"], use["input"]))
        elif "toolResult" in block:
            turn.role = "tool"
            inner = block["toolResult"]["content"]
            turn.results.append("\n".join(part.get("text") or json.dumps(part.get("json")) for part in inner))
        elif "image" in block or "document" in block:
            turn.media += 1
    return turn


def _question(seen: Seen) -> Question:
    body = seen.body
    config = body.get("inferenceConfig") or {}
    tools = body.get("toolConfig") or {}
    choice = tools.get("toolChoice") or {"auto": {}}
    text = "\n".join(block["text"] for block in body.get("system") or () if "text" in block)
    more = body.get("additionalModelRequestFields") or {}
    form = ((body.get("outputConfig") or {}).get("textFormat") or {}).get("structure") or {}
    schema = (form.get("jsonSchema") or {}).get("schema")
    return Question(
        model=seen.model,
        stream=seen.path.endswith("/converse-stream"),
        turns=([Turn("system", text)] if text else []) + [_turn(message) for message in body.get("messages", ())],
        tools=[
            Tool(spec["name"], spec.get("description") or "", spec["inputSchema"]["json"])
            for spec in (tool["toolSpec"] for tool in tools.get("tools") or () if "toolSpec" in tool)
        ],
        choice=choice["tool"]["name"] if "tool" in choice else ("required" if "any" in choice else "auto"),
        schema=json.loads(schema) if isinstance(schema, str) else schema,
        stop=config.get("stopSequences") or [],
        most=config.get("maxTokens"),
        think=any(
            (more.get(name) or {}).get("type") in ("enabled", "adaptive") for name in ("thinking", "reasoningConfig")
        ),
    )


def _usage(said: Said) -> dict[str, Any]:
    return {
        "inputTokens": said.prompt - said.cached,
        "outputTokens": said.tokens,
        "totalTokens": said.prompt + said.tokens,
        "cacheReadInputTokens": said.cached,
        "cacheWriteInputTokens": 0,
    }


def _whole(question: Question, said: Said) -> bytes:
    blocks: list[dict[str, Any]] = []
    if said.thought:
        text = {"text": "".join(said.thought), "signature": "c2lnbmVk"}
        blocks.append({"reasoningContent": {"reasoningText": text}})
    if said.pieces:
        blocks.append({"text": said.text})
    blocks += [{"toolUse": {"toolUseId": call.id, "name": call.name, "input": call.arguments}} for call in said.calls]
    return dump(
        {
            "output": {"message": {"role": "assistant", "content": blocks}},
            "stopReason": _stop(said),
            "usage": _usage(said),
            "metrics": {"latencyMs": 1},
        }
    )


def _stop(said: Said) -> str:
    return "stop_sequence" if said.stop_sequence else STOPS[said.finish]


def _spoken(question: Question, said: Said) -> Spoken:
    events: list[dict[str, Any]] = [{"messageStart": {"role": "assistant"}}]
    index = 0

    def delta(its: dict[str, Any]) -> None:
        events.append({"contentBlockDelta": {"contentBlockIndex": index, "delta": its}})

    def stop() -> None:
        nonlocal index
        events.append({"contentBlockStop": {"contentBlockIndex": index}})
        index += 1

    if said.thought:
        for piece in said.thought:
            delta({"reasoningContent": {"text": piece}})
        delta({"reasoningContent": {"signature": "c2lnbmVk"}})
        stop()
    lead = len(events)
    if said.pieces:
        for piece in said.pieces:
            delta({"text": piece})
        stop()
    for call in said.calls:
        start = {"toolUse": {"toolUseId": call.id, "name": call.name}}
        events.append({"contentBlockStart": {"contentBlockIndex": index, "start": start}})
        for piece in halves(call.json):
            delta({"toolUse": {"input": piece}})
        stop()
    events.append({"messageStop": {"stopReason": _stop(said)}})
    marker = {"metadata": {"usage": _usage(said), "metrics": {"latencyMs": 1}}}
    return Spoken([dump(event) for event in events], lead, [dump(marker)])


def _error(status: int, message: str, code: str | None) -> Wrong:
    return status, {"x-amzn-ErrorType": KINDS.get(status, "UnknownException")}, dump({"message": message})


BEDROCK = Tongue(
    name="bedrock",
    owns=lambda path: path.endswith(("/converse", "/converse-stream")),
    question=_question,
    whole=_whole,
    spoken=_spoken,
    error=_error,
    troubles={
        "context": (400, "Input is too long for requested model.", None),
        "filtered": (400, "Output blocked by content filtering policy", None),
        "no_prefill": (
            400,
            "This model does not support assistant message prefill. The conversation must end with a user message.",
            None,
        ),
    },
    frame=event_frame,
    comment=b"",
    content_type="application/vnd.amazon.eventstream",
)
