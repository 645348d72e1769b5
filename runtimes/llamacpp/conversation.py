"""A caller's messages in the form that one template takes. Pure.

Templates differ in what they accept: some know no system message, some insist on turns, some know no tools. What a
template lacks is put into the parts that it has, so that every chat model answers the same requests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from runtimes.engine import InvalidRequest, Unsupported
from runtimes.llamacpp.parameters import parameters_text
from runtimes.llamacpp.templates import TemplateInfo
from runtimes.llamacpp.tools import GENERIC, Tool, ToolFormat, ToolPlan

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
Message = dict[str, Any]
MAX_EXAMPLES = 6


def read_messages(messages: Sequence[Message]) -> list[Message]:
    """Messages with known roles and plain text contents. Raises InvalidRequest or Unsupported naming the field."""
    if not messages:
        raise InvalidRequest("`messages` must hold at least one message", param="messages")
    return [_read_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _read_message(message: Message, where: str) -> Message:
    role = ROLES.get(message.get("role", ""))
    if role is None:
        raise InvalidRequest(
            f"`{where}.role` is {json.dumps(message.get('role'))[:80]}; it must be one of {', '.join(ROLES)}",
            param=f"{where}.role",
        )
    out: Message = {"role": role, "content": _text(message.get("content"), where)}
    if role == "tool":
        out["tool_call_id"] = str(message.get("tool_call_id") or "")
        if message.get("name"):
            out["name"] = str(message["name"])
    if role == "assistant" and message.get("tool_calls"):
        out["tool_calls"] = [
            _read_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(message["tool_calls"])
        ]
    return out


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"`{where}.content` must be text or a list of parts", param=f"{where}.content")
    parts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(kind) if kind in ("text", "refusal") else None
        if not isinstance(text, str):
            param = f"{where}.content[{i}]"
            raise Unsupported(
                f"`{param}` has the type {json.dumps(kind)[:40]}; this model only reads text", param=param
            )
        parts.append(text)
    return "".join(parts)


def _read_call(call: Any, where: str) -> Message:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"`{where}.function` must have a name", param=f"{where}.function")
    param = f"{where}.function.arguments"
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (ValueError, TypeError, RecursionError):
        raise InvalidRequest(f"`{param}` is no valid JSON", param=param) from None
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"`{param}` must be a JSON object", param=param)
    return {
        "id": str(call.get("id") or ""),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def with_system(messages: list[Message], default: str) -> list[Message]:
    """Put the system texts that a chat begins with into one message; `default` stands in when there is none at all.

    A later system message stays where it is: "now answer in French" is meant from there on. `fit` moves it for
    templates that cannot show it there.
    """
    count = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    if count:
        return _system_first(messages[:count], messages[count:])
    given = any(m["role"] == "system" for m in messages)
    return messages if given or not default else [{"role": "system", "content": default}, *messages]


def _system_first(systems: list[Message], rest: list[Message]) -> list[Message]:
    text = "\n\n".join(m["content"] for m in systems if m["content"])
    return [{"role": "system", "content": text}, *rest]


def fit(messages: list[Message], info: TemplateInfo) -> list[Message]:
    """Fold what the template cannot take into what it can."""
    if not info.late_system and any(m["role"] == "system" for m in messages[1:]):
        systems = [m for m in messages if m["role"] == "system"]
        messages = _system_first(systems, [m for m in messages if m["role"] != "system"])
    if not info.system and messages and messages[0]["role"] == "system":
        system, messages = messages[0]["content"], messages[1:]
        if messages and messages[0]["role"] == "user":
            messages = [_joined({"role": "user", "content": system}, messages[0]), *messages[1:]]
        else:
            messages = [{"role": "user", "content": system}, *messages]
    if not info.alternates:
        return messages
    out: list[Message] = []
    for message in messages:
        mergeable = out and out[-1]["role"] == message["role"] and message["role"] in ("user", "assistant")
        if mergeable and "tool_calls" not in message and "tool_calls" not in out[-1]:
            out[-1] = _joined(out[-1], message)
        else:
            out.append(message)
    return out


def _joined(first: Message, second: Message) -> Message:
    return {**second, "content": "\n\n".join(t for t in (first["content"], second["content"]) if t)}


# --- tools in history -----------------------------------------------------------------------------


def native_history(messages: list[Message], form: ToolFormat, info: TemplateInfo) -> list[Message]:
    """Calls and results as a template takes them that knows tools."""
    names = {c["id"]: c["function"]["name"] for m in messages for c in m.get("tool_calls", [])}

    def call_id(given: str) -> str:
        if form.short_ids and not (len(given) == 9 and given.isalnum()):
            return hashlib.sha256(given.encode()).hexdigest()[:9]
        return given

    out = []
    for message in messages:
        message = dict(message)
        if "tool_calls" in message:
            message["tool_calls"] = [{**c, "id": call_id(c["id"])} for c in message["tool_calls"]]
            if info.arguments_as_text:
                message["tool_calls"] = [_with_text_arguments(c) for c in message["tool_calls"]]
        if message["role"] == "tool":
            message.setdefault("name", names.get(message["tool_call_id"], ""))
            message["tool_call_id"] = call_id(message["tool_call_id"])
        out.append(message)
    return out


def _with_text_arguments(call: Message) -> Message:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def generic_history(messages: list[Message], *, decided: bool) -> list[Message]:
    """Calls and results as text, in the form that the generic scheme asks of the model.

    `decided`: tools are on offer now, so text answers too begin with their decision.
    """
    names = {c["id"]: c["function"]["name"] for m in messages for c in m.get("tool_calls", [])}
    out: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            name = message.get("name") or names.get(message["tool_call_id"]) or "the tool"
            text = f"Result of {name}: {message['content']}"
            if out and out[-1].get("result"):
                out[-1] = {**out[-1], "content": f"{out[-1]['content']}\n{text}"}
            else:
                out.append({"role": "user", "content": text, "result": True})
        elif message["role"] == "assistant":
            out.append({"role": "assistant", "content": _generic_answer(message, decided)})
        else:
            out.append(message)
    return [{"role": m["role"], "content": m["content"]} for m in out]


def _generic_answer(message: Message, decided: bool) -> str:
    calls = [
        GENERIC.head_of(c["function"]["name"]) + json.dumps(c["function"]["arguments"], ensure_ascii=False)
        for c in message.get("tool_calls", [])
    ]
    if calls:
        return GENERIC.cue + GENERIC.opening + GENERIC.between.join(calls)
    return f"{GENERIC.cue}{GENERIC.refusal}{message['content']}" if decided else str(message["content"])


def generic_offer(plan: ToolPlan, messages: list[Message], *, after_result: bool) -> list[Message]:
    """Describe the tools in the system message and show the decision by examples."""
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
    rest = messages[1:] if messages and messages[0]["role"] == "system" else messages
    return [
        {"role": "system", "content": "\n\n".join(t for t in (system, offer_text(plan.tools)) if t)},
        *offer_examples(plan.tools, after_result=after_result),
        *rest,
    ]


# The wording was chosen by trying some forty on a model of 135M parameters, which makes the right call for 14 of
# 15 obvious questions and answers 7 of 11 remarks without one. The last examples weigh most: with small talk at
# the end such a model is blind to its tools, and answers that are all alike are repeated word by word.
SMALL_TALK = (
    ("Hey!", "Hello! How can I help you today?"),
    ("Thanks a lot!", "You're welcome!"),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci painted the Mona Lisa."),
)
RESULT_TALK = (
    ("What is the date?", f"{GENERIC.cue} get_date {{}}"),
    ("Result of get_date: 3 May", f"{GENERIC.cue}{GENERIC.refusal}The date is 3 May."),
)


def offer_text(tools: Sequence[Tool]) -> str:
    """What the system message says about the tools."""
    names = ", ".join(f"{tool.name}({', '.join(tool.schema.get('properties', {}))})" for tool in tools)
    # What the examples do not show must be said.
    others = "".join(f"\n- {tool.name}: {tool.description}" for tool in tools[MAX_EXAMPLES:] if tool.description)
    return (
        f'Tools: {names}. Begin each answer with "{GENERIC.cue}" and the tool that fits the message, '
        f'or "{GENERIC.cue}{GENERIC.refusal.rstrip()}" to answer directly.{others}{parameters_text(tools)}'
    )


def offer_examples(tools: Sequence[Tool], *, after_result: bool) -> list[Message]:
    """Turns that show the form: answers without a tool, and each tool asked for in its own words.

    `after_result`: a result is to be put into words now, which is shown last, where it weighs most.
    """
    talk = [(question, f"{GENERIC.cue}{GENERIC.refusal}{answer}") for question, answer in SMALL_TALK]
    uses = [(t.description.rstrip(".") or t.name, f"{GENERIC.cue} {t.name}") for t in reversed(tools[:MAX_EXAMPLES])]
    turns = [*uses, *RESULT_TALK] if after_result else [*talk, *uses]
    return [
        message
        for question, answer in turns
        for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    ]
