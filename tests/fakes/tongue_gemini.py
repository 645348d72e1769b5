"""The fake upstream's Gemini: generateContent and its stream."""

from __future__ import annotations

from typing import Any

from tests.fakes.replies import Seen
from tests.fakes.talk import Call, Question, Said, Spoken, Tool, Turn
from tests.fakes.tongue import Tongue, Wrong, dump

ENDS = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
KINDS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def _turn(content: dict[str, Any]) -> Turn:
    turn = Turn("assistant" if content.get("role") == "model" else "user")
    for part in content["parts"]:
        if "functionCall" in part:
            call = part["functionCall"]
            turn.calls.append(Call(call.get("id") or "", call["name"], call.get("args") or {}))
        elif "functionResponse" in part:
            turn.role = "tool"
            response = part["functionResponse"]["response"]
            turn.results.append(str(response.get("output", response.get("result", response))))
        elif "text" in part and not part.get("thought"):
            turn.text += part["text"]
        elif "inlineData" in part or "fileData" in part:
            turn.media += 1
    return turn


def _question(seen: Seen) -> Question:
    body = seen.body
    config = body.get("generationConfig") or {}
    calling = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    allowed = calling.get("allowedFunctionNames") or []
    mode = calling.get("mode", "AUTO")
    system = body.get("systemInstruction") or body.get("system_instruction")
    turns = [Turn("system", "".join(part["text"] for part in system["parts"]))] if system else []
    thinking = config.get("thinkingConfig") or {}
    as_json = config.get("responseMimeType") == "application/json"
    return Question(
        model=seen.model,
        stream="streamGenerateContent" in seen.path,
        turns=turns + [_turn(content) for content in body.get("contents", ())],
        tools=[_tool(tool) for tools in body.get("tools") or () for tool in tools.get("functionDeclarations", ())],
        choice={"NONE": "none", "ANY": allowed[0] if len(allowed) == 1 else "required"}.get(mode, "auto"),
        schema=(config.get("responseJsonSchema") or config.get("responseSchema") or {}) if as_json else None,
        stop=config.get("stopSequences") or [],
        n=config.get("candidateCount") or 1,
        most=config.get("maxOutputTokens"),
        think=bool(thinking.get("includeThoughts")),
    )


def _tool(tool: dict[str, Any]) -> Tool:
    schema = tool.get("parametersJsonSchema") or tool.get("parameters") or {"type": "object"}
    return Tool(tool["name"], tool.get("description") or "", schema)


def _usage(question: Question, said: Said) -> dict[str, Any]:
    answer = (said.tokens - len(said.thought)) * question.n
    thought = len(said.thought) * question.n
    return {
        "promptTokenCount": said.prompt,
        "candidatesTokenCount": answer,
        "totalTokenCount": said.prompt + answer + thought,
        **({"thoughtsTokenCount": thought} if thought else {}),
        **({"cachedContentTokenCount": said.cached} if said.cached else {}),
    }


def _parts(said: Said) -> tuple[list[dict[str, Any]], int]:
    """The parts, a piece each, and how many come before the text."""
    thoughts = [{"text": piece, "thought": True} for piece in said.thought]
    parts: list[dict[str, Any]] = [*thoughts, *({"text": piece} for piece in said.pieces)]
    for i, call in enumerate(said.calls):
        made = {"functionCall": {"id": call.id, "name": call.name, "args": call.arguments}}
        parts.append({**made, "thoughtSignature": "c2lnbmVk"} if i == 0 else made)
    return parts, len(thoughts)


def _answer(model: str, parts: list[list[dict[str, Any]]], ends: str | None, usage: dict[str, Any] | None) -> bytes:
    candidates = []
    for index, its in enumerate(parts):
        candidate: dict[str, Any] = {"content": {"parts": its, "role": "model"}, "index": index}
        candidates.append({**candidate, "finishReason": ends} if ends else candidate)
    answer: dict[str, Any] = {"candidates": candidates, "modelVersion": model, "responseId": "up"}
    return dump({**answer, "usageMetadata": usage} if usage else answer)


def _whole(question: Question, said: Said) -> bytes:
    parts = _parts(said)[0]
    merged: list[dict[str, Any]] = [
        *([{"text": "".join(said.thought), "thought": True}] if said.thought else []),
        *([{"text": said.text}] if said.pieces else []),
        *(part for part in parts if "functionCall" in part),
    ]
    return _answer(question.model, [merged] * question.n, ENDS[said.finish], _usage(question, said))


def _spoken(question: Question, said: Said) -> Spoken:
    parts, lead = _parts(said)
    running = {"promptTokenCount": said.prompt, "totalTokenCount": said.prompt}
    events = [_answer(question.model, [[part]] * question.n, None, running) for part in parts]
    # There is no end marker: the finish reason says that the answer is complete.
    return Spoken(events, lead, [_answer(question.model, [[]] * question.n, ENDS[said.finish], _usage(question, said))])


def _error(status: int, message: str, code: str | None) -> Wrong:
    error = {"code": status, "message": message, "status": KINDS.get(status, "UNKNOWN")}
    return status, {}, dump({"error": error})


GEMINI = Tongue(
    name="gemini",
    owns=lambda path: path.endswith((":generateContent", ":streamGenerateContent")),
    question=_question,
    whole=_whole,
    spoken=_spoken,
    error=_error,
    troubles={
        "context": (
            400,
            "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
            None,
        ),
        "filtered": (400, "The request was blocked by content filtering policy: PROHIBITED_CONTENT", None),
        "no_prefill": (400, "Please ensure that multiturn requests end with a user role.", None),
    },
)
