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

_VERSION = re.compile(r"claude-(?:[a-z]+-)*?v?(\d{1,2})(?:[.-](\d{1,2}))?(?![0-9])")
_CLAUDE = re.compile(r"claude-[a-z]")
_NO_VERSION = (0, 0)


class Claude(msgspec.Struct, frozen=True):
    """A generation of models."""

    efforts: tuple[str, ...] = ()
    """How hard it may be told to think, where it sees by itself how much there is to think about. Empty: it cannot."""
    budgets: bool = True
    """It may be told how many tokens it has for thinking."""
    off: Literal["unsaid", "disabled", "between_tools", "never"] = "unsaid"
    """What keeps it from thinking: to say nothing, to say so in one word or the other, or nothing at all."""
    sampling: Literal["free", "one", "none"] = "free"
    """one: of temperature and top_p it takes only one. none: it takes neither, and no top_k."""
    forced: bool = True
    """It can be made to call a tool."""
    strict: bool = True
    """It refuses what does not go together with thinking. False: nobody knows."""


OTHER = Claude(strict=False)
"""A model that is none of Anthropic's. Models of others that speak the dialect take what Anthropic's took first."""

_ALL = ("low", "medium", "high", "xhigh", "max")
_NEWEST = Claude(_ALL, budgets=False, off="never", sampling="none", forced=False)
_ANY = re.compile("")
_ALWAYS_THINKS = re.compile(r"claude-(?:fable|mythos)")
# Anthropic's pages of each model, "What's new" and "Migration guide" below platform.claude.com/docs/en/models, as they
# were in November 2026:
# - opus-5-5, fable-5-1 and fable-5-2: thinking is always on, and neither a budget, sampling, a beginning of the answer
#   nor a forced call is taken;
# - sonnet-5-5: the same, but `between_tools` is its least thinking, up to the effort high;
# - haiku-5-5: budgets, sampling and beginnings are refused; thinking can be disabled, and nothing is said of calls;
# - opus-5, sonnet-5: think unless it is disabled (at no more than the effort high); fable-5 always thinks;
# - opus-4-7: budgets and sampling are refused, xhigh is new; 4-6: effort and max are new, budgets are deprecated;
# - sonnet-4-5 (and opus-4-1): temperature or top_p, not both.
_GENERATIONS: tuple[tuple[tuple[int, int], re.Pattern[str], Claude], ...] = (
    ((5, 1), re.compile("claude-sonnet"), msgspec.structs.replace(_NEWEST, off="between_tools")),
    ((5, 1), re.compile("claude-haiku"), msgspec.structs.replace(_NEWEST, off="disabled", forced=True)),
    ((5, 1), _ANY, _NEWEST),
    ((5, 0), _ALWAYS_THINKS, Claude(_ALL, budgets=False, off="never", sampling="none")),
    ((5, 0), _ANY, Claude(_ALL, budgets=False, off="disabled", sampling="none")),
    ((4, 7), _ANY, Claude(_ALL, budgets=False, sampling="none")),
    ((4, 6), _ANY, Claude(("low", "medium", "high", "max"), sampling="one")),
    ((4, 1), _ANY, Claude(sampling="one")),
    ((1, 0), _ANY, Claude()),
)
"""Since which version, for whose names, and what is so since then."""


def version_of(model: str) -> tuple[int, int]:
    """Which version a name tells of; (0, 0) where it tells of none."""
    found = _VERSION.search(model)
    return (int(found[1]), int(found[2] or 0)) if found is not None else _NO_VERSION


def claude_of(model: str) -> Claude:
    """By a model's name, a vendor before it (`anthropic.`) or an ARN around it. One of Anthropic's whose name tells no
    version is taken for one of the newest, since every new one has taken less than those before."""
    version = version_of(model)
    if version == _NO_VERSION:
        return _NEWEST if _CLAUDE.search(model) else OTHER
    return next((claude for since, names, claude in _GENERATIONS if version >= since and names.search(model)), OTHER)


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
