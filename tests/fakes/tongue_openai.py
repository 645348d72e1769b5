"""The fake upstream's OpenAI: chat, completions and embeddings."""

from __future__ import annotations

import json
import math
from typing import Any

from tests.fakes.replies import Reply, Seen
from tests.fakes.talk import Call, Question, Said, Spoken, Tool, Turn
from tests.fakes.tongue import Tongue, Wrong, dump, halves, text_of

TEXT = ["Hello", ", ", "wörld 🌍", "!"]
TROUBLES: dict[str, tuple[int, str, str | None]] = {
    "context": (
        400,
        "This model's maximum context length is 8 tokens. However, your messages resulted in 20 tokens.",
        "context_length_exceeded",
    ),
    "filtered": (
        400,
        "The response was filtered due to the prompt triggering the content management policy.",
        "content_filter",
    ),
    "no_prefill": (400, "The last message must be from the user; assistant prefill is not supported.", "invalid_value"),
}

# --- what many tests build their replies of -------------------------------------------------------


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    """The data of one chat chunk."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    frame = {"id": "chatcmpl-up", "object": "chat.completion.chunk", "created": 1, "model": "upstream-model"}
    return json.dumps({**frame, "choices": [choice], **more}, separators=(",", ":")).encode()


def usage_chunk(prompt: int = 5, completion: int = 3) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    frame = {"id": "chatcmpl-up", "object": "chat.completion.chunk", "created": 1, "model": "upstream-model"}
    return json.dumps({**frame, "choices": [], "usage": usage}, separators=(",", ":")).encode()


def chat_events(texts: list[str] | None = None) -> list[bytes]:
    texts = TEXT if texts is None else texts
    return [
        chunk({"role": "assistant", "content": "", "refusal": None}),
        *(chunk({"content": text}) for text in texts),
        chunk({}, "stop"),
        usage_chunk(completion=len(texts)),
    ]


def chat_whole(text: str = "".join(TEXT)) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    answer = {
        "id": "chatcmpl-up",
        "object": "chat.completion",
        "created": 1,
        "model": "upstream-model",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 4,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }
    return json.dumps(answer).encode()


def without_usage(body: bytes) -> bytes:
    return json.dumps({name: value for name, value in json.loads(body).items() if name != "usage"}).encode()


def embeddings_whole(asked: Any = "") -> bytes:
    """One vector for each input of a request: texts, or lists of token ids."""
    several = isinstance(asked, list) and not (asked and isinstance(asked[0], int))
    count = len(asked) if several else 1
    data = [{"object": "embedding", "index": i, "embedding": [0.6, 0.8]} for i in range(count)]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return json.dumps({"object": "list", "model": "upstream-model", "data": data, "usage": usage}).encode()


def completion_whole() -> bytes:
    choice = {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "length"}
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    frame = {"id": "cmpl-up", "object": "text_completion", "created": 1, "model": "upstream-model"}
    return json.dumps({**frame, "choices": [choice], "usage": usage}).encode()


def error(status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None) -> Reply:
    body = {"error": {"message": message, "type": "some_error", "param": None, "code": code}}
    return Reply(status, headers or {}, json.dumps(body).encode())


# --- what the able model needs --------------------------------------------------------------------


def read_tool(tool: dict[str, Any]) -> Tool:
    """A function, flat or in its wrapping; of a custom tool as much as is like one."""
    function = tool.get("function") or tool.get("custom") or tool
    name = function.get("name") or str(tool.get("type"))
    return Tool(name, function.get("description") or "", function.get("parameters") or {"type": "object"})


def _call(call: dict[str, Any]) -> Call:
    function = call.get("function") or call.get("custom") or {}
    written = function.get("arguments") or function.get("input") or "{}"
    try:
        arguments = json.loads(written)
    except ValueError:
        arguments = written
    return Call(
        call.get("id") or "",
        function.get("name") or "",
        arguments if isinstance(arguments, dict) else {"input": written},
    )


def _turn(message: dict[str, Any]) -> Turn:
    text, media = text_of(message.get("content"), "text", "refusal")
    role = message.get("role")
    if role in ("tool", "function"):
        return Turn("tool", media=media, results=[text])
    calls = [_call(call) for call in message.get("tool_calls") or ()]
    text = text or message.get("refusal") or ""
    return Turn("system" if role == "developer" else role or "user", text, media, calls)


def _choice(choice: Any) -> str:
    """auto, none, required, or the name of a tool."""
    if not isinstance(choice, dict):
        return choice or "auto"
    allowed = choice.get("allowed_tools") or (choice if choice.get("type") == "allowed_tools" else None)
    if allowed is not None:
        return str(allowed.get("mode") or "auto")
    named = choice.get("function") or choice.get("custom") or choice
    return str(named.get("name") or "required")


def _question(seen: Seen) -> Question:
    body = seen.body
    form = body.get("response_format") or {}
    schema = (form.get("json_schema") or {}).get("schema") if form.get("type") == "json_schema" else None
    stop = body.get("stop") or []
    return Question(
        model=seen.model,
        stream=bool(body.get("stream")),
        turns=[_turn(message) for message in body.get("messages", ())],
        tools=[read_tool(tool) for tool in body.get("tools") or ()],
        choice=_choice(body.get("tool_choice")),
        parallel=body.get("parallel_tool_calls") is not False,
        schema={} if form.get("type") == "json_object" else schema,
        stop=[stop] if isinstance(stop, str) else stop,
        n=body.get("n") or 1,
        logprobs=(body.get("top_logprobs") or 0) if body.get("logprobs") else None,
        most=body.get("max_completion_tokens") or body.get("max_tokens"),
        think=bool(body.get("reasoning_effort") or body.get("reasoning")),
        count=bool((body.get("stream_options") or {}).get("include_usage")),
    )


def _logprobs(pieces: list[str], top: int | None) -> dict[str, Any] | None:
    if top is None:
        return None
    shown = []
    for piece in pieces:
        one = {"token": piece, "logprob": math.log(0.9), "bytes": list(piece.encode())}
        others = [{**one, "logprob": math.log(0.9 / (i + 1))} for i in range(top)]
        shown.append({**one, "top_logprobs": others})
    return {"content": shown, "refusal": None}


def usage(question: Question, said: Said) -> dict[str, Any]:
    completion = said.tokens * question.n
    return {
        "prompt_tokens": said.prompt,
        "completion_tokens": completion,
        "total_tokens": said.prompt + completion,
        "prompt_tokens_details": {"cached_tokens": said.cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": len(said.thought) * question.n, "audio_tokens": 0},
    }


def _calls(said: Said, index: int) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id if index == 0 else f"{call.id}_{index}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.json},
        }
        for call in said.calls
    ]


def _whole(question: Question, said: Said) -> bytes:
    choices = []
    for i in range(question.n):
        message: dict[str, Any] = {"role": "assistant", "content": said.text or None, "refusal": None}
        message["annotations"] = []
        if said.thought:
            message["reasoning_content"] = "".join(said.thought)
        if said.calls:
            message["tool_calls"] = _calls(said, i)
        logprobs = _logprobs(said.pieces, question.logprobs)
        choices.append({"index": i, "message": message, "logprobs": logprobs, "finish_reason": said.finish})
    frame = {"id": "chatcmpl-up", "object": "chat.completion", "created": 1, "model": question.model}
    return dump({**frame, "choices": choices, "usage": usage(question, said)})


def _spoken(question: Question, said: Said) -> Spoken:
    indexes = range(question.n)
    events = [chunk({"role": "assistant", "content": "", "refusal": None}, index=i) for i in indexes]
    events += [chunk({"reasoning_content": piece}, index=i) for piece in said.thought for i in indexes]
    lead = len(events)
    for piece in said.pieces:
        for i in indexes:
            event = json.loads(chunk({"content": piece}, index=i))
            event["choices"][0]["logprobs"] = _logprobs([piece], question.logprobs)
            events.append(dump(event))
    for i in indexes:
        for k, call in enumerate(_calls(said, i)):
            function = call["function"]
            first = {**call, "index": k, "function": {"name": function["name"], "arguments": ""}}
            events.append(chunk({"tool_calls": [first]}, index=i))
            for piece in halves(function["arguments"]):
                events.append(chunk({"tool_calls": [{"index": k, "function": {"arguments": piece}}]}, index=i))
        events.append(chunk({}, said.finish, index=i))
    if question.count:
        ending = json.loads(chunk({}))
        events.append(dump({**ending, "choices": [], "usage": usage(question, said)}))
    named = [dump({**json.loads(event), "model": question.model}) for event in events]
    return Spoken(named, lead, [b"[DONE]"])


def wrong(status: int, message: str, code: str | None) -> Wrong:
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    return status, {}, dump({"error": {"message": message, "type": kind, "param": None, "code": code}})


OPENAI = Tongue(
    name="openai",
    owns=lambda path: path.endswith("/chat/completions"),
    question=_question,
    whole=_whole,
    spoken=_spoken,
    error=wrong,
    troubles=TROUBLES,
)
