"""Anthropic's Messages API as targets speak it: how to ask in it, and how to read what comes back. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.dialects import chat
from appliance.dialects import parameters as p
from appliance.dialects.answer import Ask
from appliance.dialects.claude import OTHER, Claude, check_choice, claude_of, sampling, takes_budget, unsampled
from appliance.dialects.messages.reader import MessagesReader, read_whole
from appliance.dialects.messages.turns import system_of, turns_of
from appliance.dialects.schemas import arguments, narrowed
from appliance.dialects.translating import EFFORTS, effort_of, nearest, refuse, thinking_budget
from appliance.dialects.wire import encode
from appliance.errors import BadRequest, UnsupportedParameter, UpstreamFailed
from runtimes.engine import Event

FEATURES = frozenset({"tools", "json_schema", "images", "tool_images", "files", "reasoning", "top_k", "prefill"})
"""What targets of this dialect can do of what `chat.needs` may name."""

PATH = "messages"
COUNT_PATH = "messages/count_tokens"

LEAST_BUDGET = 1024
"""Tokens; Anthropic thinks with no fewer."""
_BUDGETS = {
    "minimal": LEAST_BUDGET,
    "low": 2048,
    "medium": 8192,
    "high": 16_384,
    "xhigh": 32_768,
    "max": 32_768,
}
"""Tokens for thinking, where a model knows no effort."""
_REFUSED = {
    "min_p": "leave it out, or use top_p.",
    "repetition_penalty": "leave it out.",
    "presence_penalty": "leave it out.",
    "frequency_penalty": "leave it out.",
    "logit_bias": "leave it out.",
    "logprobs": "leave it out.",
    "verbosity": "ask for the length you want in a message.",
}


_UNKNOWN = frozenset(_REFUSED) | {"seed"}


class AnthropicOutbound:
    """See `dialects.answer.Outbound`."""

    name = "anthropic"

    def __init__(self, max_tokens: int = 4096, *, effort: bool | None = None) -> None:
        """max_tokens: for requests that set no limit, which Anthropic does not take. effort: whether the models take an
        effort for their thinking (and no budget) or a budget (and no effort); None goes by their names."""
        self._max_tokens = max_tokens
        self._claude = None if effort is None else _told(effort)

    def unknown(self, model: str) -> frozenset[str]:
        """Fields that the model has no notion for, and without which it answers all the same."""
        return _UNKNOWN | unsampled(self._claude or claude_of(model))

    def ask(self, request: chat.ChatRequest, model: str, *, stream: bool) -> Ask:
        """Raises UnsupportedParameter."""
        refuse_unknown(request)
        claude = self._claude or claude_of(model)
        body = self._prompt(request, model)
        thinks = body.get("thinking", _NO_THINKING)["type"] != "disabled"
        temperature, top_p, top_k = sampling(request, claude, thinks=thinks)
        options: dict[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k or None,
            "stop_sequences": stops_of(request) or None,
            "metadata": {"user_id": request.user} if request.user else None,
            "stream": True if stream else None,
        }
        body.update({name: value for name, value in options.items() if value is not None})
        return Ask(PATH, encode(body))

    def count(self, request: chat.ChatRequest, model: str) -> Ask:
        """The question how many tokens the prompt has; `counted` reads its answer. Raises UnsupportedParameter."""
        body = self._prompt(request, model)
        del body["max_tokens"]
        return Ask(COUNT_PATH, encode(body))

    def reader(self, target: str, request: Any) -> MessagesReader:
        return MessagesReader(target)

    def read_whole(self, body: bytes, target: str, request: Any) -> list[Event]:
        return read_whole(body, target)

    def _prompt(self, request: chat.ChatRequest, model: str) -> dict[str, Any]:
        claude = self._claude or claude_of(model)
        check_choice(request, claude)
        body: dict[str, Any] = {"model": model, "max_tokens": request.token_limit or self._max_tokens}
        if (system := system_of(request.messages)) is not None:
            body["system"] = system
        body["messages"] = turns_of(request.messages)
        if request.tools:
            body["tools"] = [_tool(tool, f"tools[{k}]", claude) for k, tool in enumerate(request.tools)]
            if (choice := choice_of(request)) is not None:
                body["tool_choice"] = choice
        form = format_of(request.response_format, narrow=claude.strict)
        effort, thinking = self._thinking(request, claude, body)
        config = {**({"effort": effort} if effort else {}), **({"format": form} if form else {})}
        if config:
            body["output_config"] = config
        if thinking is not None:
            body["thinking"] = thinking
        return body

    def _thinking(
        self, request: chat.ChatRequest, claude: Claude, body: dict[str, Any]
    ) -> tuple[str | None, dict[str, Any] | None]:
        """output_config.effort and thinking. Makes room in `body` for a budget where the caller has set no limit."""
        asked = request.reasoning or {}
        effort, budget = effort_of(request), thinking_budget(request)
        if effort is None and budget is None and not asked.get("enabled"):
            return None, None
        if effort == "none":
            return _OFF[claude.off]
        shown = "omitted" if asked.get("exclude") else "summarized" if asked.get("summary") else None
        if budget is not None and not claude.budgets:
            if effort is None:
                raise UnsupportedParameter(
                    "reasoning.max_tokens: this model takes no budget for its reasoning; use reasoning.effort.",
                    param="reasoning.max_tokens",
                )
            budget = None  # the effort tells the same in other words
        if budget is None and claude.efforts:
            least = None if effort is None else nearest(effort, claude.efforts)
            return least, {"type": "adaptive", "display": shown or "summarized"}
        tokens = self._budget(request, effort, budget, body) if takes_budget(request, claude) else None
        if tokens is None:
            return None, None
        return None, {"type": "enabled", "budget_tokens": tokens, **({"display": shown} if shown else {})}

    def _budget(
        self, request: chat.ChatRequest, effort: str | None, budget: int | None, body: dict[str, Any]
    ) -> int | None:
        """Tokens for thinking, which are part of the answer's limit and fewer than it; None: no room for any."""
        limit = request.token_limit
        tokens = _BUDGETS[effort or "medium"] if budget is None else max(budget, LEAST_BUDGET)
        if limit is None:
            body["max_tokens"] = self._max_tokens + tokens
            return tokens
        if budget is None:
            # An effort is a hint: it takes no more than leaves half of the answer's tokens for the answer.
            tokens = min(tokens, limit // 2)
            return tokens if tokens >= LEAST_BUDGET else None
        if tokens >= limit:
            raise BadRequest(
                f"reasoning.max_tokens must be less than max_completion_tokens, which counts both; here it is "
                f"{LEAST_BUDGET} or more.",
                param="reasoning.max_tokens",
            )
        return tokens


def refuse_unknown(request: chat.ChatRequest) -> None:
    """Raises UnsupportedParameter for a field that Anthropic has no notion for."""
    refuse(request, _REFUSED)
    if request.seed is not None:
        raise UnsupportedParameter("seed is not supported by this target: leave it out.", param="seed")
    if request.choices > 1:
        raise UnsupportedParameter("n is not supported by this target: ask once for each answer.", param="n")
    if request.temperature is not None and request.temperature > 1.0:
        raise UnsupportedParameter(
            "temperature: this target takes 0 to 1; a higher one is not supported.", param="temperature"
        )


def stops_of(request: chat.ChatRequest) -> list[str]:
    """stop_sequences. Raises UnsupportedParameter."""
    stops = p.as_stop_list(request.stop)
    for k, stop in enumerate(stops):
        if not stop.strip():
            path = "stop" if isinstance(request.stop, str) else f"stop[{k}]"
            raise UnsupportedParameter(f"{path}: this target takes none that is nothing but blanks.", param=path)
    return stops


_NO_THINKING = {"type": "disabled"}
_OFF: dict[str, tuple[str | None, dict[str, Any] | None]] = {
    "unsaid": (None, None),
    "disabled": (None, _NO_THINKING),
    "between_tools": (None, {"type": "between_tools"}),
    "never": ("low", {"type": "adaptive", "display": "omitted"}),
}
"""output_config.effort and thinking, as near to no thinking as there is."""


def _told(effort: bool) -> Claude:
    """A model of which an operator says how it is told to think."""
    if effort:
        return msgspec.structs.replace(OTHER, efforts=EFFORTS[2:], budgets=False, off="disabled")
    return OTHER


def _tool(tool: chat.Tool, path: str, claude: Claude) -> dict[str, Any]:
    function = tool.function
    made: dict[str, Any] = {"name": function.name}
    if function.description:
        made["description"] = function.description
    narrow = bool(function.strict) and claude.strict
    made["input_schema"] = arguments(function.parameters, f"{path}.function.parameters", narrow=narrow)
    if function.strict:
        made["strict"] = True
    if tool.cache_control is not None:
        made["cache_control"] = tool.cache_control
    return made


def choice_of(request: chat.ChatRequest) -> dict[str, Any] | None:
    """tool_choice; None leaves it to the model."""
    choice = request.tool_choice
    if choice == "none":
        return {"type": "none"}
    alone = {"disable_parallel_tool_use": True} if request.parallel_tool_calls is False else {}
    if isinstance(choice, chat.ToolChoice):
        return {"type": "tool", "name": choice.function.name, **alone}
    if choice == "required":
        return {"type": "any", **alone}
    return {"type": "auto", **alone} if choice == "auto" or alone else None


def format_of(form: chat.ResponseFormat | None, *, narrow: bool = True) -> dict[str, Any] | None:
    """output_config.format. `narrow`: by a schema that Anthropic's own models take. Raises UnsupportedParameter for one
    that cannot be said there, and for JSON without a schema."""
    if form is None or isinstance(form, chat.TextFormat):
        return None
    if isinstance(form, chat.JsonSchemaFormat) and form.json_schema.schema is not None:
        schema = form.json_schema.schema
        if narrow:
            schema = narrowed(schema, "response_format.json_schema.schema")
        return {"type": "json_schema", "schema": schema}
    raise UnsupportedParameter(
        "response_format: the model can be held to JSON only by a schema; use json_schema with a schema.",
        param="response_format",
    )


class _Count(msgspec.Struct, frozen=True):
    input_tokens: int


_decode_count = msgspec.json.Decoder(_Count).decode


def counted(body: bytes, target: str) -> int:
    """The number in an answer of count_tokens. Raises UpstreamFailed."""
    try:
        return max(_decode_count(body).input_tokens, 0)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UpstreamFailed(f"{target} gave an answer that is not of the expected form.") from None


def count_body(tokens: int) -> bytes:
    """The answer of count_tokens."""
    return encode({"input_tokens": tokens})
