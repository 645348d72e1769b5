"""What Converse leaves to the makers of the models: reasoning, top_k, caches. One row a family.

Converse passes `additionalModelRequestFields` on to the model as they are, so that they are spelled by its maker.
A model's id names its family; that of an application's own inference profile does not, and gets what Converse itself
has a notion for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from appliance.errors import BadRequest, UnsupportedParameter

Fields = dict[str, Any]
LEAST_BUDGET = 1024
"""Tokens; Claude takes no smaller one."""


class Reasoning(msgspec.Struct, frozen=True):
    """What a request says about reasoning. All None: nothing."""

    effort: str | None = None
    budget: int | None = None
    """Tokens."""
    enabled: bool | None = None
    exclude: bool = False
    limit: int | None = None
    """Most tokens of the whole answer."""

    @property
    def off(self) -> bool:
        return self.enabled is False or self.effort == "none"


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


_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
_THREE = {**_EFFORTS, "xhigh": "high", "max": "high"}
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 32768, "max": 32768}


def _no_budget(asked: Reasoning) -> None:
    if asked.budget is not None:
        raise UnsupportedParameter(
            "reasoning.max_tokens: this model takes no budget for its reasoning; use reasoning.effort.",
            param="reasoning.max_tokens",
        )


def _budgeted(asked: Reasoning) -> Wanted:
    """Claude up to 4.5, which has to be told how many tokens it may think for."""
    if asked.off:
        return Wanted()
    budget = asked.budget
    if budget is None:
        # An effort is a hint: it takes no more than leaves half of the answer's tokens for the answer.
        budget = _BUDGETS[asked.effort or "medium"]
        if asked.limit is not None:
            budget = min(budget, asked.limit // 2)
        if budget < LEAST_BUDGET:
            return Wanted()
    elif budget < LEAST_BUDGET:
        raise BadRequest(
            f"reasoning.max_tokens must be at least {LEAST_BUDGET} for this model.", param="reasoning.max_tokens"
        )
    elif asked.limit is not None and budget >= asked.limit:
        raise BadRequest(
            "reasoning.max_tokens must be less than max_completion_tokens, which counts both.",
            param="reasoning.max_tokens",
        )
    return Wanted({"thinking": {"type": "enabled", "budget_tokens": budget}})


def _adaptive(asked: Reasoning) -> Wanted:
    """Claude from 4.6 on, which sees by itself how much there is to think about."""
    _no_budget(asked)
    if asked.off:
        return Wanted({"thinking": {"type": "disabled"}})
    display = "omitted" if asked.exclude else "summarized"
    # Without an effort it may well not think at all on Converse.
    return Wanted({"thinking": {"type": "adaptive", "display": display}}, _EFFORTS[asked.effort or "high"])


def _nova(asked: Reasoning) -> Wanted:
    _no_budget(asked)
    if asked.off:
        return Wanted({"reasoningConfig": {"type": "disabled"}})
    return Wanted({"reasoningConfig": {"type": "enabled", "maxReasoningEffort": _THREE[asked.effort or "medium"]}})


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
    return Wanted(effort=_EFFORTS[asked.effort] if asked.effort else None)


def _plain(field: str) -> Callable[[int], Fields]:
    return lambda k: {field: k}


_CLAUDE = frozenset({"system", "messages", "tools"})
FAMILIES = (
    # claude-3-…, claude-sonnet-4-20250514, claude-opus-4-5-20251101
    Family(
        re.compile(r"anthropic\.claude-(?:instant|v2|3|[a-z]+-4-(?:[0-5]-)?20)"),
        _budgeted,
        _plain("top_k"),
        _CLAUDE,
        one_call=True,
        says_stop=True,
    ),
    Family(re.compile(r"anthropic\.claude"), _adaptive, _plain("top_k"), _CLAUDE, one_call=True, says_stop=True),
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


def reasoning_of(effort: str | None, more: Mapping[str, Any] | None, limit: int | None) -> Reasoning | None:
    """What a request's `reasoning_effort` and `reasoning` say together; None: nothing. Raises BadRequest."""
    more = more or {}
    budget = more.get("max_tokens")
    if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool)):
        raise BadRequest("reasoning.max_tokens must be a whole number.", param="reasoning.max_tokens")
    asked = Reasoning(
        effort=more.get("effort") or effort,
        budget=budget,
        enabled=more.get("enabled"),
        exclude=bool(more.get("exclude")),
        limit=limit,
    )
    if asked.effort is None and asked.budget is None and asked.enabled is None:
        return None
    if asked.effort is not None and asked.effort != "none" and asked.effort not in _EFFORTS:
        raise BadRequest(f"reasoning.effort must be one of none, {', '.join(_EFFORTS)}.", param="reasoning.effort")
    return asked
