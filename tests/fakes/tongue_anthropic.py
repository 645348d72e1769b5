"""The fake upstream's Anthropic Messages, with count_tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.fakes.replies import Seen, named
from tests.fakes.talk import Call, Question, Said, Spoken, Tool, Turn
from tests.fakes.tongue import Tongue, Wrong, dump, halves

STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def _turns(message: dict[str, Any]) -> Iterator[Turn]:
    content = message["content"]
    if isinstance(content, str):
        yield Turn(message["role"], content)
        return
    turn, results = Turn(message["role"]), Turn("tool")
    for block in content:
        kind = block["type"]
        if kind == "text":
            turn.text += block["text"]
        elif kind == "tool_use":
            turn.calls.append(Call(block["id"], block["name"], block["input"]))
        elif kind == "tool_result":
            inner = block.get("content") or ""
            parts = [{"type": "text", "text": inner}] if isinstance(inner, str) else inner
            results.results.append("\n".join(part["text"] for part in parts if part["type"] == "text"))
            results.media += sum(part["type"] in ("image", "document") for part in parts)
        elif kind in ("image", "document"):
            turn.media += 1
    if results.results:
        yield results
    if turn.text or turn.calls or turn.media:
        yield turn


def _question(seen: Seen) -> Question:
    body = seen.body
    system = body.get("system") or ""
    text = system if isinstance(system, str) else "\n".join(block["text"] for block in system)
    turns = [Turn("system", text)] if text else []
    for message in body.get("messages", ()):
        turns += _turns(message)
    choice = body.get("tool_choice") or {"type": "auto"}
    form = (body.get("output_config") or {}).get("format") or body.get("output_format")
    return Question(
        model=seen.model,
        stream=bool(body.get("stream")),
        turns=turns,
        tools=[
            Tool(tool["name"], tool.get("description") or "", tool["input_schema"])
            for tool in body.get("tools") or ()
            if "input_schema" in tool
        ],
        choice={"any": "required", "tool": choice.get("name", "")}.get(choice["type"], choice["type"]),
        parallel=not choice.get("disable_parallel_tool_use"),
        schema=form["schema"] if form else None,
        stop=body.get("stop_sequences") or [],
        most=body.get("max_tokens"),
        think=(body.get("thinking") or {}).get("type") in ("enabled", "adaptive"),
    )


def _usage(said: Said, output: int) -> dict[str, Any]:
    return {
        "input_tokens": said.prompt - said.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": said.cached,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"thinking_tokens": len(said.thought)},
        "server_tool_use": None,
        "service_tier": "standard",
        "inference_geo": None,
        "fallback_reason": None,
    }


def _blocks(said: Said) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if said.thought:
        blocks.append({"type": "thinking", "thinking": "".join(said.thought), "signature": "c2lnbmVk"})
    if said.pieces:
        blocks.append({"type": "text", "text": said.text, "citations": None})
    blocks += [
        {"type": "tool_use", "id": f"toolu_{call.id}", "name": call.name, "input": call.arguments, "caller": DIRECT}
        for call in said.calls
    ]
    return blocks


DIRECT = {"type": "direct"}


def _message(question: Question, said: Said) -> dict[str, Any]:
    return {
        "id": "msg_up",
        "type": "message",
        "role": "assistant",
        "model": question.model,
        "container": None,
        "content": _blocks(said),
        "stop_reason": "stop_sequence" if said.stop_sequence else STOPS[said.finish],
        "stop_sequence": said.stop_sequence,
        "stop_details": None,
        "usage": _usage(said, said.tokens),
    }


def _whole(question: Question, said: Said) -> bytes:
    return dump(_message(question, said))


def _spoken(question: Question, said: Said) -> Spoken:
    message = _message(question, said)
    opened = {**message, "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(said, 1)}
    events: list[Any] = [{"type": "message_start", "message": opened}]
    lead = 0
    for index, block in enumerate(message["content"]):
        deltas: list[dict[str, Any]]
        if block["type"] == "thinking":
            empty: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in said.thought]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        elif block["type"] == "text":
            empty = {"type": "text", "text": "", "citations": None}
            deltas = [{"type": "text_delta", "text": piece} for piece in said.pieces]
            lead = len(events) + 1
        else:
            empty = {**block, "input": {}}
            call = said.calls[index - (len(message["content"]) - len(said.calls))]
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ["", *halves(call.json)]]
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    ending = {name: message[name] for name in ("container", "stop_reason", "stop_sequence", "stop_details")}
    events.append({"type": "message_delta", "delta": ending, "usage": message["usage"]})
    return Spoken([dump(event) for event in events], lead or len(events), [dump({"type": "message_stop"})])


def _error(status: int, message: str, code: str | None) -> Wrong:
    kind = KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_up"}
    return status, {"request-id": "req_up"}, dump(body)


def count_tokens(question: Question) -> bytes:
    return dump({"input_tokens": 3 + sum(len(turn.text.split()) + 4 for turn in question.turns)})


ANTHROPIC = Tongue(
    name="anthropic",
    owns=lambda path: path.endswith("/messages"),
    question=_question,
    whole=_whole,
    spoken=_spoken,
    error=_error,
    troubles={
        "context": (400, "prompt is too long: 212345 tokens > 200000 maximum", None),
        "filtered": (400, "Output blocked by content filtering policy", None),
        "no_prefill": (
            400,
            "This model does not support assistant message prefill. The conversation must end with a user message.",
            None,
        ),
    },
    frame=named,
    comment=named(b'{"type": "ping"}'),
)
COUNTING = Tongue(
    name="anthropic_count",
    owns=lambda path: path.endswith("/messages/count_tokens"),
    question=_question,
    whole=lambda question, said: count_tokens(question),
    spoken=_spoken,
    error=_error,
)
