"""What depends on which of Anthropic's models it is, whoever runs it: Anthropic itself, or Bedrock. Pure.

Each generation refuses something that the one before took. What a request asks for in spite of that is refused by name
here, so that another target can take it, or goes without it where its meaning does not hang on it.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from appliance.dialects import chat, thoughts
from appliance.errors import UnsupportedParameter

_VERSION = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[.-](\d{1,2}))?(?![0-9])")
_NO_VERSION = (0, 0)


class Claude(msgspec.Struct, frozen=True):
    """A generation of models."""

    efforts: tuple[str, ...] = ()
    """How hard it may be told to think, where it sees by itself how much there is to think about. Empty: it cannot."""
    budgets: bool = True
    """It may be told how many tokens it has for thinking."""
    off: Literal["unsaid", "disabled", "never"] = "unsaid"
    """What keeps it from thinking: to say nothing, to say so, or nothing at all."""
    sampling: Literal["free", "one", "none"] = "free"
    """one: of temperature and top_p it takes only one. none: it takes neither, and no top_k."""
    forced: bool = True
    """It can be made to call a tool."""
    strict: bool = True
    """It refuses what does not go together with thinking. False: nobody knows."""


OTHER = Claude(strict=False)
"""A model whose name tells nothing. Models of others that speak the dialect take what Anthropic's took first."""

_ALL = ("low", "medium", "high", "xhigh", "max")
_ALWAYS_THINKS = re.compile(r"claude-(?:fable|mythos)")
_FABLE = Claude(_ALL, budgets=False, off="never", sampling="none")
_GENERATIONS = (
    ((5, 1), Claude(_ALL, budgets=False, off="never", sampling="none", forced=False)),
    ((5, 0), Claude(_ALL, budgets=False, off="disabled", sampling="none")),
    ((4, 7), Claude(_ALL, budgets=False, sampling="none")),
    ((4, 6), Claude(("low", "medium", "high", "max"), sampling="one")),
    ((4, 1), Claude(sampling="one")),
    ((1, 0), Claude()),
)
"""Since which version, and what is so since then."""


def version_of(model: str) -> tuple[int, int]:
    """Which version a name tells of; (0, 0) where it tells of none."""
    found = _VERSION.search(model)
    return (int(found[1]), int(found[2] or 0)) if found is not None else _NO_VERSION


def claude_of(model: str) -> Claude:
    """By a model's name, a vendor before it (`anthropic.`) or an ARN around it."""
    version = version_of(model)
    for since, claude in _GENERATIONS:
        if version >= since:
            return _FABLE if version < (5, 1) and _ALWAYS_THINKS.search(model) else claude
    return OTHER


def sampling(request: chat.ChatRequest, claude: Claude, *, thinks: bool) -> tuple[float | None, float | None, int]:
    """temperature, top_p and top_k (0: none) as they are sent. `thinks`: the request asks for thinking.

    Raises UnsupportedParameter.
    """
    temperature, top_p, top_k = request.temperature, request.top_p, max(request.top_k or 0, 0)
    if claude.sampling == "none":
        why = "this model takes none"
        least = 1.0
    elif thinks and claude.strict:
        why = "this model takes it as it is while it thinks"
        least = 0.95
    else:
        if claude.sampling == "one" and temperature is not None and top_p is not None:
            if temperature != 1.0 and top_p != 1.0:
                _refuse("top_p", "this model takes temperature or top_p, not both")
            temperature, top_p = (None, top_p) if temperature == 1.0 else (temperature, None)
        return temperature, top_p, top_k
    if temperature not in (None, 1.0):
        _refuse("temperature", why)
    if top_p is not None and top_p < least:
        _refuse("top_p", why)
    if top_k:
        _refuse("top_k", why)
    return None, top_p if top_p != 1.0 else None, 0


def unsampled(claude: Claude) -> frozenset[str]:
    """The fields of `sampling` that it never takes."""
    return frozenset({"temperature", "top_p", "top_k"}) if claude.sampling == "none" else frozenset()


def _refuse(field: str, why: str) -> None:
    raise UnsupportedParameter(f"{field} is not supported by this target: {why}; leave it out.", param=field)


def check_choice(request: chat.ChatRequest, claude: Claude) -> None:
    """Raises UnsupportedParameter."""
    if not claude.forced and forces(request):
        raise UnsupportedParameter(
            "tool_choice is not supported by this target: the model cannot be made to call a tool; use auto.",
            param="tool_choice",
        )


def forces(request: chat.ChatRequest) -> bool:
    """Whether the model has to call a tool."""
    return bool(request.tools) and request.tool_choice not in (None, "auto", "none")


def takes_budget(request: chat.ChatRequest, claude: Claude) -> bool:
    """Whether thinking with a budget goes together with the rest of the request: it does not where a tool must be
    called, where the answer is begun, and in the middle of calls that another model, or this one without thinking, has
    begun. Thinking is a wish; without it there is an answer all the same."""
    if not claude.strict:
        return True
    return not (forces(request) or _begun(request.messages) or _calls_without_thought(request.messages))


def _begun(messages: list[chat.Message]) -> bool:
    last = messages[-1]
    return isinstance(last, chat.AssistantMessage) and not last.tool_calls


def _calls_without_thought(messages: list[chat.Message]) -> bool:
    """Whether the turn that is still going on began to call tools without a thought that Anthropic has signed."""
    first: Any = None
    before: Any = None
    for message in messages:
        if isinstance(message, chat.UserMessage) and not isinstance(before, chat.ToolMessage):
            first = None
        elif isinstance(message, chat.AssistantMessage):
            if not message.tool_calls:
                first = None
            elif first is None:
                first = message
        before = message
    return first is not None and next(thoughts.anthropics(first.reasoning_details), None) is None
