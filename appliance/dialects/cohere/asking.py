"""Requests in the form of Cohere's chat (API v2). Pure.

Its messages are much like OpenAI's. What the model planned before it called tools is a field of its own there
(`tool_plan`): that is where reasoning goes back to; reasoning before a plain answer is not sent again.
"""

from __future__ import annotations

from typing import Any

from appliance.dialects import chat
from appliance.dialects.parameters import as_stop_list
from appliance.dialects.transcript import told
from appliance.dialects.translating import data_url, effort_of, joined, thinking_budget
from appliance.errors import UnsupportedParameter

_MOST_K = 500
_P = (0.01, 0.99)
_MOST_SEED = (1 << 63) - 1
_BOUNDS = (
    ("temperature", "temperature", 1.0),
    ("presence_penalty", "presence_penalty", 1.0),
    ("frequency_penalty", "frequency_penalty", 1.0),
)
"""Field, its name there, and the most that it may be; the least is 0 for all of them."""
_BUDGETS: dict[str, int | None] = {
    "minimal": 512,
    "low": 1024,
    "medium": 8192,
    "high": None,
    "xhigh": None,
    "max": None,
}
"""Efforts in tokens of thought. Without a number the model thinks for as long as it likes."""


def body(request: chat.ChatRequest, model: str, *, stream: bool) -> dict[str, Any]:
    """Raises BadRequest or UnsupportedParameter."""
    made: dict[str, Any] = {
        "model": model,
        "messages": [_message(message, i) for i, message in told(request.messages)],
    }
    if stream:
        made["stream"] = True
    if request.token_limit is not None:
        made["max_tokens"] = request.token_limit
    made.update(_sampling(request))
    if stops := as_stop_list(request.stop):
        made["stop_sequences"] = stops
    if request.logprobs:
        if request.top_logprobs:
            raise UnsupportedParameter(
                "top_logprobs: this target tells no alternatives; send 0 or leave it out.", param="top_logprobs"
            )
        made["logprobs"] = True
    made.update(_tools(request))
    if (form := _form(request.response_format)) is not None:
        made["response_format"] = form
    if (thinking := _thinking(request)) is not None:
        made["thinking"] = thinking
    return made


def _sampling(request: chat.ChatRequest) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for field, name, most in _BOUNDS:
        value = getattr(request, field)
        if value is None:
            continue
        if not 0.0 <= value <= most:
            raise UnsupportedParameter(f"{field}: this target takes 0 to {most:g}, not {value:g}.", param=field)
        made[name] = value
    if request.top_p is not None:
        # It can neither be turned off nor be nothing; left out it would be 0.75.
        made["p"] = min(max(request.top_p, _P[0]), _P[1])
    if request.top_k is not None:
        made["k"] = min(max(request.top_k, 0), _MOST_K)
    if request.seed is not None:
        # Never negative there. Any other seed that is always the same for this one means the same.
        made["seed"] = request.seed & _MOST_SEED
    return made


def _message(message: chat.Message, i: int) -> dict[str, Any]:
    if isinstance(message, chat.UserMessage):
        return {"role": "user", "content": _user(message.content, i)}
    if isinstance(message, chat.AssistantMessage):
        return _answer(message)
    if isinstance(message, chat.ToolMessage):
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": _result(message, i)}
    return {"role": "system", "content": joined(message.content)}


def _user(content: Any, i: int) -> Any:
    if isinstance(content, str):
        return content
    return [_part(part, f"messages[{i}].content[{k}]") for k, part in enumerate(content)]


def _part(part: Any, field: str) -> dict[str, Any]:
    if isinstance(part, chat.TextPart):
        return {"type": "text", "text": part.text}
    if not isinstance(part, chat.ImagePart):
        kind = "audio" if isinstance(part, chat.AudioPart) else "files"
        raise UnsupportedParameter(f"{field}: this target takes no {kind}.", param=field)
    data_url(part.image_url.url, f"{field}.image_url.url")
    image: dict[str, Any] = {"url": part.image_url.url}
    if part.image_url.detail is not None:
        detail = part.image_url.detail
        image["detail"] = "high" if detail == "original" else detail
    return {"type": "image_url", "image_url": image}


def _answer(message: chat.AssistantMessage) -> dict[str, Any]:
    made: dict[str, Any] = {"role": "assistant"}
    text = "\n".join([part for part in (joined(message.content), message.refusal) if part])
    if text or not message.tool_calls:
        made["content"] = text
    if message.tool_calls:
        if message.reasoning_content:
            made["tool_plan"] = message.reasoning_content
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments or "{}"},
            }
            for call in message.tool_calls
        ]
    return made


def _result(message: chat.ToolMessage, i: int) -> Any:
    for k, part in enumerate(message.content):
        if isinstance(part, chat.ImagePart | chat.FilePart):
            field = f"messages[{i}].content[{k}]"
            what = "images" if isinstance(part, chat.ImagePart) else "files"
            raise UnsupportedParameter(f"{field}: this target takes no {what} in results of tools.", param=field)
    if isinstance(message.content, str):
        return message.content
    return [{"type": "text", "text": part.text} for part in message.content if isinstance(part, chat.TextPart)]


def _tools(request: chat.ChatRequest) -> dict[str, Any]:
    tools, choice = request.tools or [], request.tool_choice
    if not tools:
        return {}
    made: dict[str, Any] = {}
    if isinstance(choice, chat.ToolChoice):
        # One of several cannot be named there; the one that is left must be it.
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        choice = "required"
    if choice in _CHOICES:
        made["tool_choice"] = _CHOICES[choice]
    if all(tool.function.strict for tool in tools):
        made["strict_tools"] = True
    return {"tools": [_tool(tool.function) for tool in tools], **made}


_CHOICES = {"required": "REQUIRED", "none": "NONE"}
"""Not named: auto, which is what it does by itself."""


def _tool(function: chat.Function) -> dict[str, Any]:
    made: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        made["description"] = function.description
    made["parameters"] = function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": made}


def _form(form: chat.ResponseFormat | None) -> dict[str, Any] | None:
    if form is None or isinstance(form, chat.TextFormat):
        return None
    made: dict[str, Any] = {"type": "json_object"}
    if isinstance(form, chat.JsonSchemaFormat) and form.json_schema.schema:
        schema = form.json_schema.schema
        if form.json_schema.description and "description" not in schema:
            schema = {**schema, "description": form.json_schema.description}
        made["json_schema"] = schema
    return made


def _thinking(request: chat.ChatRequest) -> dict[str, Any] | None:
    """How to think. Nothing where nothing was asked for: a model that cannot think refuses all of it."""
    effort, budget = effort_of(request), thinking_budget(request)
    if effort is None and budget is None and not (request.reasoning or {}).get("enabled"):
        return None
    if effort == "none":
        return {"type": "disabled"}
    budget = budget if budget is not None or effort is None else _BUDGETS[effort]
    return {"type": "enabled"} if budget is None else {"type": "enabled", "token_budget": budget}
