"""What Converse leaves to the makers of the models: reasoning, top_k, caches. One row a family.

Converse passes `additionalModelRequestFields` on to the model as they are, so that they are spelled by its maker.
A model's id names its family; that of an application's own inference profile does not, and gets what Converse itself
has a notion for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from appliance.dialects.chat import ChatRequest
from appliance.dialects.claude import OTHER, Claude, takes_budget
from appliance.dialects.translating import effort_of, nearest, thinking_budget
from appliance.errors import BadRequest, UnsupportedParameter

Fields = dict[str, Any]
LEAST_BUDGET = 1024
"""Tokens; Claude takes no smaller one."""


class Reasoning(msgspec.Struct, frozen=True):
    """What a request says about reasoning: at least that it is wanted."""

    effort: str | None = None
    budget: int | None = None
    """Tokens."""
    exclude: bool = False
    limit: int | None = None
    """Most tokens of the whole answer."""
    claude: Claude = OTHER
    """What is so of the model, if it is one of Anthropic's."""
    takes_budget: bool = True
    """A budget goes together with the rest of the request."""

    @property
    def off(self) -> bool:
        return self.effort == "none"


class Wanted(msgspec.Struct, frozen=True):
    """What is to be written for it: the maker's fields, and Converse's own `effort`."""

    fields: Fields = {}
    effort: str | None = None


class Family(msgspec.Struct, frozen=True):
    """`reasoning` is only asked when something is said about it; `top_k` gives the fields for one."""

    id: re.Pattern[str]
    reasoning: Callable[[Reasoning], Wanted]
    top_k: Callable[[int], Fields]
    caches: frozenset[str] = frozenset()
    """Where cache points may stand: system, messages, tools."""
    one_call: bool = False
    """Whether parallel tool calls can be turned off."""
    says_stop: bool = False
    """Whether it tells which stop sequence it met."""
    anthropic: bool = False
    """Whether it is one of Anthropic's: see dialects.claude."""


_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_THREE = _EFFORTS[:3]
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 32768, "max": 32768}


def _no_budget(asked: Reasoning) -> None:
    """A number of tokens cannot be kept to. One that comes with an effort is told by that."""
    if asked.budget is not None and asked.effort is None:
        raise UnsupportedParameter(
            "reasoning.max_tokens: this model takes no budget for its reasoning; use reasoning.effort.",
            param="reasoning.max_tokens",
        )


def _budgeted(asked: Reasoning) -> Wanted:
    """Claude up to 4.5, which has to be told how many tokens it may think for."""
    if asked.off or not asked.takes_budget:
        return Wanted()
    limit = asked.limit
    if asked.budget is None:
        # An effort is a hint: it takes no more than leaves half of the answer's tokens for the answer.
        budget = _BUDGETS[asked.effort or "medium"]
        budget = budget if limit is None else min(budget, limit // 2)
        if budget < LEAST_BUDGET:
            return Wanted()
    else:
        budget = max(asked.budget, LEAST_BUDGET)
        if limit is not None and budget >= limit:
            raise BadRequest(
                f"reasoning.max_tokens must be less than max_completion_tokens, which counts both; here it is "
                f"{LEAST_BUDGET} or more.",
                param="reasoning.max_tokens",
            )
    return Wanted({"thinking": {"type": "enabled", "budget_tokens": budget}})


def _either(asked: Reasoning) -> Wanted:
    """Claude 4.6, which takes both ways."""
    return _adaptive(asked) if asked.budget is None else _budgeted(asked)


def _adaptive(asked: Reasoning) -> Wanted:
    """Claude from 4.7 on, which sees by itself how much there is to think about."""
    _no_budget(asked)
    if asked.off:
        return _OFF[asked.claude.off]
    display = "omitted" if asked.exclude else "summarized"
    # Without an effort it may well not think at all on Converse.
    effort = nearest(asked.effort or "high", asked.claude.efforts or _EFFORTS)
    return Wanted({"thinking": {"type": "adaptive", "display": display}}, effort)


_OFF = {
    "unsaid": Wanted(),
    "disabled": Wanted({"thinking": {"type": "disabled"}}),
    "between_tools": Wanted({"thinking": {"type": "between_tools"}}),
    "never": Wanted({"thinking": {"type": "adaptive", "display": "omitted"}}, "low"),
}
"""As near to no thinking as there is."""


def _nova(asked: Reasoning) -> Wanted:
    _no_budget(asked)
    if asked.off:
        return Wanted({"reasoningConfig": {"type": "disabled"}})
    return Wanted(
        {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": nearest(asked.effort or "medium", _THREE)}}
    )


def _openai(asked: Reasoning) -> Wanted:
    _no_budget(asked)
    effort = "none" if asked.off else asked.effort
    return Wanted({"reasoning_effort": effort} if effort else {})


def _other(asked: Reasoning) -> Wanted:
    _no_budget(asked)
    if asked.off:
        raise UnsupportedParameter(
            "reasoning: whether this model reasons cannot be turned off here; leave it out.", param="reasoning"
        )
    return Wanted(effort=nearest(asked.effort, _EFFORTS) if asked.effort else None)


def _plain(field: str) -> Callable[[int], Fields]:
    return lambda k: {field: k}


def _claude(id: str, reasoning: Callable[[Reasoning], Wanted]) -> Family:
    caches = frozenset({"system", "messages", "tools"})
    return Family(re.compile(id), reasoning, _plain("top_k"), caches, one_call=True, says_stop=True, anthropic=True)


FAMILIES = (
    # claude-3-7-sonnet, claude-sonnet-4-20250514, claude-opus-4-5: up to 4.5, with or without a date
    _claude(r"anthropic\.claude-(?:instant|v2|3|[a-z]+-4(?:-[0-5])?(?![0-9])(?!-[0-9]{1,2}(?![0-9])))", _budgeted),
    _claude(r"anthropic\.claude-[a-z]+-4-6", _either),
    _claude(r"anthropic\.claude", _adaptive),
    Family(
        re.compile(r"amazon\.nova"),
        _nova,
        lambda k: {"inferenceConfig": {"topK": k}},
        frozenset({"system", "messages"}),
    ),
    Family(re.compile(r"openai\."), _openai, _plain("top_k")),
    Family(re.compile(r"cohere\."), _other, _plain("k")),
    Family(re.compile(""), _other, _plain("top_k")),
)


def family_of(model: str) -> Family:
    """By a model's id, a geography before it (`eu.`) or an ARN around it."""
    return next(family for family in FAMILIES if family.id.search(model))


def reasoning_of(request: ChatRequest, claude: Claude = OTHER) -> Reasoning | None:
    """What its `reasoning_effort` and `reasoning` say together; None: nothing. Raises BadRequest."""
    wish = request.reasoning or {}
    effort, budget, enabled = effort_of(request), thinking_budget(request), wish.get("enabled")
    if effort is None and budget is None and not enabled:
        return None
    return Reasoning(
        effort,
        budget,
        exclude=bool(wish.get("exclude")),
        limit=request.token_limit,
        claude=claude,
        takes_budget=takes_budget(request, claude),
    )
