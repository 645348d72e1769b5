"""The fake upstream's OpenAI Responses."""

from __future__ import annotations

import json
from typing import Any

from tests.fakes.replies import Seen, named
from tests.fakes.talk import Call, Question, Said, Spoken, Turn
from tests.fakes.tongue import Tongue, dump, halves, text_of
from tests.fakes.tongue_openai import TROUBLES, read_tool, wrong


def _turn(item: dict[str, Any]) -> Turn | None:
    kind = item.get("type", "message")
    if kind == "function_call":
        return Turn("assistant", calls=[Call(item["call_id"], item["name"], json.loads(item["arguments"]))])
    if kind == "function_call_output":
        text, media = text_of(item["output"], "text")
        return Turn("tool", media=media, results=[text])
    if kind != "message":
        return None
    text, media = text_of(item["content"], "text", "refusal")
    return Turn("system" if item["role"] == "developer" else item["role"], text, media)


def _question(seen: Seen) -> Question:
    body = seen.body
    given = body.get("input") or []
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    turns = [Turn("system", body["instructions"])] if body.get("instructions") else []
    turns += [turn for turn in map(_turn, items) if turn is not None]
    choice = body.get("tool_choice") or "auto"
    form = (body.get("text") or {}).get("format") or {}
    return Question(
        model=seen.model,
        stream=bool(body.get("stream")),
        turns=turns,
        tools=[read_tool(tool) for tool in body.get("tools") or () if tool["type"] == "function"],
        choice=choice if isinstance(choice, str) else choice["name"],
        parallel=body.get("parallel_tool_calls") is not False,
        schema={} if form.get("type") == "json_object" else form.get("schema"),
        most=body.get("max_output_tokens"),
        think=bool((body.get("reasoning") or {}).get("effort")),
        echo={"reasoning": {"effort": None, "summary": None, **(body.get("reasoning") or {})}},
    )


def _response(question: Question, output: list[dict[str, Any]], said: Said | None) -> dict[str, Any]:
    """said: None while the answer is under way."""
    short = said is not None and said.finish in ("length", "content_filter")
    why = {"length": "max_output_tokens"}.get(said.finish, "content_filter") if said is not None and short else None
    return {
        "id": "resp_up",
        "object": "response",
        "created_at": 1,
        "completed_at": None if said is None or short else 2,
        "status": "in_progress" if said is None else ("incomplete" if short else "completed"),
        "incomplete_details": {"reason": why} if why else None,
        "model": question.model,
        "previous_response_id": None,
        "instructions": None,
        "output": output,
        "error": None,
        "tools": [],
        "tool_choice": "auto",
        "truncation": "disabled",
        "parallel_tool_calls": True,
        "text": {"format": {"type": "text"}},
        "top_p": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "top_logprobs": 0,
        "temperature": 1.0,
        "usage": None
        if said is None
        else {
            "input_tokens": said.prompt,
            "output_tokens": said.tokens,
            "total_tokens": said.prompt + said.tokens,
            "input_tokens_details": {"cached_tokens": said.cached},
            "output_tokens_details": {"reasoning_tokens": len(said.thought)},
        },
        "max_output_tokens": question.most,
        "max_tool_calls": None,
        "store": False,
        "background": False,
        "service_tier": "default",
        "metadata": {},
        "safety_identifier": None,
        "prompt_cache_key": None,
        **question.echo,
    }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _items(said: Said) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if said.thought:
        summary = [{"type": "summary_text", "text": "".join(said.thought)}]
        items.append({"id": "rs_up", "type": "reasoning", "summary": summary, "status": "completed"})
    if said.pieces:
        status = "incomplete" if said.finish == "length" else "completed"
        message = {"id": "msg_up", "type": "message", "status": status, "role": "assistant", "phase": "final_answer"}
        items.append({**message, "content": [_text_part(said.text)]})
    items += [
        {
            "id": f"fc_{call.id}",
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.json,
        }
        for call in said.calls
    ]
    return items


def _whole(question: Question, said: Said) -> bytes:
    return dump(_response(question, _items(said), said))


def _spoken(question: Question, said: Said) -> Spoken:
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": _response(question, [], None)},
        {"type": "response.in_progress", "response": _response(question, [], None)},
    ]
    items, lead = _items(said), 0
    for index, item in enumerate(items):
        place = {"item_id": item["id"], "output_index": index}
        if item["type"] == "reasoning":
            events.append(_added(index, {**item, "summary": [], "status": "in_progress"}))
            events += _parts("reasoning_summary", {**place, "summary_index": 0}, item["summary"][0], said.thought)
        elif item["type"] == "message":
            events.append(_added(index, {**item, "content": [], "status": "in_progress"}))
            lead = len(events) + 1
            events += _parts("content", {**place, "content_index": 0}, item["content"][0], said.pieces)
        else:
            events.append(_added(index, {**item, "arguments": "", "status": "in_progress"}))
            name = "response.function_call_arguments"
            events += [{"type": f"{name}.delta", **place, "delta": piece} for piece in halves(item["arguments"])]
            done = {"arguments": item["arguments"], "name": item["name"]}
            events.append({"type": f"{name}.done", **place, **done})
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    final = _response(question, items, said)
    events.append({"type": f"response.{final['status']}", "response": final})
    data = [dump({**event, "sequence_number": i}) for i, event in enumerate(events)]
    return Spoken(data[:-1], lead or len(data) - 1, data[-1:])


def _added(index: int, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def _parts(kind: str, place: dict[str, Any], part: dict[str, Any], pieces: list[str]) -> list[dict[str, Any]]:
    """A part of text from its beginning to its end."""
    text = "response.output_text" if kind == "content" else "response.reasoning_summary_text"
    more: dict[str, Any] = {"logprobs": []} if kind == "content" else {}
    return [
        {"type": f"response.{kind}_part.added", **place, "part": {**part, "text": ""}},
        *({"type": f"{text}.delta", **place, "delta": piece, **more} for piece in pieces),
        {"type": f"{text}.done", **place, "text": part["text"], **more},
        {"type": f"response.{kind}_part.done", **place, "part": part},
    ]


RESPONSES = Tongue(
    name="responses",
    owns=lambda path: path.endswith("/responses"),
    question=_question,
    whole=_whole,
    spoken=_spoken,
    error=wrong,
    troubles=TROUBLES,
    frame=named,
)
