"""Everything of a request but its messages, as Gemini has it. Pure."""

from __future__ import annotations

from typing import Any

from appliance.dialects import chat
from appliance.dialects.gemini.model import Model
from appliance.dialects.parameters import as_stop_list
from appliance.dialects.translating import effort_of, thinking_budget
from appliance.errors import UnsupportedParameter

MOST_STOPS = 5
MOST_CHOICES = 8
_MOST_SEED = (1 << 31) - 1

_SAME = (
    ("temperature", "temperature"),
    ("top_p", "topP"),
    ("presence_penalty", "presencePenalty"),
    ("frequency_penalty", "frequencyPenalty"),
)

_LEVELS = {
    "none": "MINIMAL",
    "minimal": "MINIMAL",
    "low": "LOW",
    "medium": "MEDIUM",
    "high": "HIGH",
    "xhigh": "HIGH",
    "max": "HIGH",
}
"""Efforts as the newest models have them. They cannot be kept from thinking: the least is the nearest to none."""
_BUDGETS = {
    "none": 0,
    "minimal": 1024,
    "low": 1024,
    "medium": 8192,
    "high": 24_576,
    "xhigh": 24_576,
    "max": 24_576,
}
"""Efforts in tokens, for models before those: Google's own numbers for OpenAI's words. The last is the most that the
smallest of them takes."""
_LEAST_OF_PRO = 128


def generation(request: chat.ChatRequest, model: Model) -> dict[str, Any]:
    """The `generationConfig`; may be empty. Raises BadRequest or UnsupportedParameter."""
    made: dict[str, Any] = {}
    if request.token_limit is not None:
        made["maxOutputTokens"] = request.token_limit
    for field, name in _SAME:
        value = getattr(request, field)
        if value is not None:
            made[name] = value
    if request.top_k is not None and request.top_k > 0:
        made["topK"] = request.top_k
    if request.seed is not None:
        # 32 bits there. Any other seed that is always the same for this one means the same.
        made["seed"] = request.seed & _MOST_SEED
    if stops := as_stop_list(request.stop):
        _most(len(stops), MOST_STOPS, "stop")
        made["stopSequences"] = stops
    if request.n is not None:
        _most(request.n, MOST_CHOICES, "n")
        made["candidateCount"] = request.n
    if request.logprobs:
        made["responseLogprobs"] = True
        if request.top_logprobs:
            made["logprobs"] = request.top_logprobs
    made.update(_form(request.response_format))
    if (thinking := _thinking(request, model)) is not None:
        made["thinkingConfig"] = thinking
    return made


def _most(number: int, most: int, field: str) -> None:
    if number > most:
        raise UnsupportedParameter(f"{field}: this target takes at most {most}, not {number}.", param=field)


def _form(form: chat.ResponseFormat | None) -> dict[str, Any]:
    if form is None or isinstance(form, chat.TextFormat):
        return {}
    made: dict[str, Any] = {"responseMimeType": "application/json"}
    if isinstance(form, chat.JsonSchemaFormat) and form.json_schema.schema:
        schema = form.json_schema.schema
        if form.json_schema.description and "description" not in schema:
            schema = {**schema, "description": form.json_schema.description}
        made["responseJsonSchema"] = schema
    return made


def _thinking(request: chat.ChatRequest, model: Model) -> dict[str, Any] | None:
    """How to think. Nothing where nothing was asked for: a model that cannot think refuses all of it."""
    effort, budget = effort_of(request), thinking_budget(request)
    if effort is None and not request.reasoning:
        return None
    off = effort == "none"
    made: dict[str, Any] = {"includeThoughts": not off and not (request.reasoning or {}).get("exclude")}
    if budget is not None and not off:
        made["thinkingBudget"] = budget
    elif effort is not None and model.newest:
        made["thinkingLevel"] = "LOW" if model.pro and _LEVELS[effort] == "MINIMAL" else _LEVELS[effort]
    elif effort is not None:
        made["thinkingBudget"] = max(_BUDGETS[effort], _LEAST_OF_PRO if model.pro else 0)
    return made


def tools(request: chat.ChatRequest) -> dict[str, Any]:
    """`tools` and `toolConfig`, as far as they are needed."""
    if not request.tools:
        return {}
    made: dict[str, Any] = {"tools": [{"functionDeclarations": [_declared(tool.function) for tool in request.tools]}]}
    if request.tool_choice is not None:
        made["toolConfig"] = {"functionCallingConfig": _choice(request.tool_choice)}
    return made


def _declared(function: chat.Function) -> dict[str, Any]:
    # A description is required there.
    made: dict[str, Any] = {"name": function.name, "description": function.description or function.name}
    if function.parameters:
        made["parametersJsonSchema"] = function.parameters
    return made


def _choice(choice: str | chat.ToolChoice) -> dict[str, Any]:
    if isinstance(choice, chat.ToolChoice):
        return {"mode": "ANY", "allowedFunctionNames": [choice.function.name]}
    return {"mode": _MODES[choice]}


_MODES = {"auto": "AUTO", "required": "ANY", "none": "NONE"}
