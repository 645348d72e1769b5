"""The fake upstream's Cohere v2 chat."""

from __future__ import annotations

import json
from typing import Any

from tests.fakes.replies import Seen, named
from tests.fakes.talk import Call, Question, Said, Spoken, Turn
from tests.fakes.tongue import Tongue, Wrong, dump, halves, text_of
from tests.fakes.tongue_openai import read_tool

ENDS = {"stop": "COMPLETE", "length": "MAX_TOKENS", "tool_calls": "TOOL_CALL", "content_filter": "ERROR"}


def _turn(message: dict[str, Any]) -> Turn:
    content = message.get("content")
    texts: Any = content
    if isinstance(content, list):
        texts = [part for part in content if part.get("type") != "thinking"]
        texts = [part["document"]["data"] if part.get("type") == "document" else part for part in texts]
    text, media = text_of(texts, "text", "content")
    if message["role"] == "tool":
        return Turn("tool", media=media, results=[text])
    calls = [
        Call(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls") or ()
    ]
    return Turn("system" if message["role"] == "developer" else message["role"], text, media, calls)


def _question(seen: Seen) -> Question:
    body = seen.body
    form = body.get("response_format") or {}
    return Question(
        model=seen.model,
        stream=bool(body.get("stream")),
        turns=[_turn(message) for message in body.get("messages", ())],
        tools=[read_tool(tool) for tool in body.get("tools") or ()],
        choice={"REQUIRED": "required", "NONE": "none"}.get(body.get("tool_choice") or "", "auto"),
        schema=(form.get("json_schema") or {}) if form.get("type") == "json_object" else None,
        stop=body.get("stop_sequences") or [],
        most=body.get("max_tokens"),
        think=(body.get("thinking") or {}).get("type") == "enabled",
    )


def _usage(said: Said) -> dict[str, Any]:
    tokens = {"input_tokens": said.prompt, "output_tokens": said.tokens}
    return {"billed_units": dict(tokens), "tokens": tokens, "cached_tokens": said.cached}


def _end(said: Said) -> str:
    return "STOP_SEQUENCE" if said.stop_sequence else ENDS[said.finish]


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.json}}


def _whole(question: Question, said: Said) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": []}
    if said.thought:
        message["content"].append({"type": "thinking", "thinking": "".join(said.thought)})
    if said.pieces:
        message["content"].append({"type": "text", "text": said.text})
    if said.calls:
        message.update(tool_plan="I will look that up.", tool_calls=[_call(call) for call in said.calls])
    return dump({"id": "up", "finish_reason": _end(said), "message": message, "usage": _usage(said)})


def _event(kind: str, index: int | None, message: dict[str, Any] | None) -> dict[str, Any]:
    event: dict[str, Any] = {"type": kind}
    if index is not None:
        event["index"] = index
    return event if message is None else {**event, "delta": {"message": message}}


def _spoken(question: Question, said: Said) -> Spoken:
    events = [{"id": "up", **_event("message-start", None, {"role": "assistant", "content": [], "tool_plan": ""})}]
    index, lead = 0, 1
    for name, pieces in (("thinking", said.thought), ("text", said.pieces)):
        if pieces:
            events.append(_event("content-start", index, {"content": {"type": name, name: ""}}))
            lead = len(events)
            events += [_event("content-delta", index, {"content": {name: piece}}) for piece in pieces]
            events.append(_event("content-end", index, None))
            index += 1
    if said.calls:
        events.append(_event("tool-plan-delta", None, {"tool_plan": "I will look that up."}))
    for k, call in enumerate(said.calls):
        made = _call(call)
        made["function"]["arguments"] = ""
        events.append(_event("tool-call-start", k, {"tool_calls": made}))
        for piece in halves(call.json):
            events.append(_event("tool-call-delta", k, {"tool_calls": {"function": {"arguments": piece}}}))
        events.append(_event("tool-call-end", k, None))
    end = {"type": "message-end", "delta": {"finish_reason": _end(said), "usage": _usage(said)}}
    return Spoken([dump(event) for event in events], lead, [dump(end)])


def _error(status: int, message: str, code: str | None) -> Wrong:
    return status, {}, dump({"id": "up", "message": message})


COHERE = Tongue(
    name="cohere",
    owns=lambda path: path.endswith("/v2/chat"),
    question=_question,
    whole=_whole,
    spoken=_spoken,
    error=_error,
    troubles={
        "context": (
            400,
            "too many tokens: size limit exceeded by 5000 tokens. Try using shorter or fewer inputs.",
            None,
        ),
        "filtered": (400, "blocked output: please try again with a different prompt", None),
        "no_prefill": (400, "invalid request: the last message must be from the user or a tool", None),
    },
    frame=named,
)
