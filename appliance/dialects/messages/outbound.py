"""Anthropic's Messages API as targets speak it: how to ask in it, and how to read what comes back. Pure."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from appliance.dialects import chat
from appliance.dialects import parameters as p
from appliance.dialects.answer import Ask
from appliance.dialects.messages.reader import MessagesReader, read_whole
from appliance.dialects.messages.turns import system_of, turns_of
from appliance.dialects.translating import effort_of, refuse, thinking_budget
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
_VERSION = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[.-](\d{1,2}))?(?![0-9])")
_EFFORT_SINCE, _BUDGET_UNTIL = (4, 6), (4, 6)
_LIKE_OLD = (0, 0)
"""Models of others that speak the dialect take what Anthropic's took first."""


def version_of(model: str) -> tuple[int, int]:
    """Which generation of Anthropic's models a name tells of; (0, 0) where it tells of none."""
    found = _VERSION.search(model)
    return (int(found[1]), int(found[2] or 0)) if found is not None else _LIKE_OLD


_REFUSED = {
    "min_p": "leave it out, or use top_p.",
    "repetition_penalty": "leave it out.",
    "presence_penalty": "leave it out.",
    "frequency_penalty": "leave it out.",
    "logit_bias": "leave it out.",
    "logprobs": "leave it out.",
    "verbosity": "ask for the length you want in a message.",
}


class AnthropicOutbound:
    """See `dialects.answer.Outbound`."""

    name = "anthropic"

    def __init__(self, max_tokens: int = 4096, *, effort: bool | None = None) -> None:
        """max_tokens: for requests that set no limit, which Anthropic does not take. effort: whether the models take an
        effort for their thinking (and no budget) or a budget (and no effort); None goes by their names."""
        self._max_tokens = max_tokens
        self._effort = effort

    def ask(self, request: chat.ChatRequest, model: str, *, stream: bool) -> Ask:
        """Raises UnsupportedParameter."""
        refuse_unknown(request)
        body = self._prompt(request, model)
        stops = [stop for stop in p.as_stop_list(request.stop) if stop.strip()]
        options: dict[str, Any] = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k if request.top_k and request.top_k > 0 else None,
            "stop_sequences": stops or None,
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
        body: dict[str, Any] = {"model": model, "max_tokens": request.token_limit or self._max_tokens}
        if (system := system_of(request.messages)) is not None:
            body["system"] = system
        body["messages"] = turns_of(request.messages)
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
            if (choice := choice_of(request)) is not None:
                body["tool_choice"] = choice
        form = format_of(request.response_format)
        effort, thinking = self._thinking(request, model, body)
        config = {**({"effort": effort} if effort else {}), **({"format": form} if form else {})}
        if config:
            body["output_config"] = config
        if thinking is not None:
            body["thinking"] = thinking
        return body

    def _thinking(
        self, request: chat.ChatRequest, model: str, body: dict[str, Any]
    ) -> tuple[str | None, dict[str, Any] | None]:
        """output_config.effort and thinking. Makes room in `body` for a budget where the caller has set no limit."""
        asked = request.reasoning or {}
        effort, budget = effort_of(request), thinking_budget(request)
        if effort is None and budget is None and not asked.get("enabled"):
            return None, None
        version = version_of(model)
        takes_effort = version >= _EFFORT_SINCE if self._effort is None else self._effort
        takes_budget = version <= _BUDGET_UNTIL if self._effort is None else not self._effort
        if effort == "none":
            return None, {"type": "disabled"} if takes_effort else None
        shown = "omitted" if asked.get("exclude") else "summarized" if asked.get("summary") else None
        if budget is not None and not takes_budget and effort is not None:
            budget = None  # the effort tells the same in other words
        if budget is not None and not takes_budget:
            raise UnsupportedParameter(
                "reasoning.max_tokens: this model takes no budget for its reasoning; use reasoning.effort.",
                param="reasoning.max_tokens",
            )
        if budget is None and takes_effort:
            least = "low" if effort == "minimal" else effort
            return least, {"type": "adaptive", "display": shown or "summarized"}
        tokens = self._budget(request, effort, budget, body)
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


def _tool(tool: chat.Tool) -> dict[str, Any]:
    function = tool.function
    made: dict[str, Any] = {"name": function.name}
    if function.description:
        made["description"] = function.description
    made["input_schema"] = {"type": "object", **(function.parameters or {"properties": {}})}
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


def format_of(form: chat.ResponseFormat | None) -> dict[str, Any] | None:
    """output_config.format. Raises UnsupportedParameter for JSON without a schema."""
    if form is None or isinstance(form, chat.TextFormat):
        return None
    if isinstance(form, chat.JsonSchemaFormat) and form.json_schema.schema is not None:
        return {"type": "json_schema", "schema": form.json_schema.schema}
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
