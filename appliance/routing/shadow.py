"""How a shadow's answer compares with the one that the client got. Pure; a shadow's answer itself is dropped."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec

COMPARED = 8192
"""Characters of each answer that are compared: the loop does not wait for more."""
GRAM = 3


class Said(msgspec.Struct, frozen=True):
    """A finished answer."""

    text: str = ""
    tool_calls: tuple[tuple[str, str], ...] = ()
    """(name, arguments as JSON)."""
    finish_reason: str = ""
    ttft_s: float | None = None
    seconds: float = 0.0
    completion_tokens: int = 0
    cost_nanousd: int = 0
    error: str = ""
    """Code of the error, where there was no answer."""


class Comparison(msgspec.Struct, frozen=True):
    """Differences are the shadow's value less the answer's. Holds nothing of what was said."""

    similarity: float
    """0: nothing in common, 1: the same text."""
    characters: int
    shadow_characters: int
    same_tool_calls: bool
    same_finish_reason: bool
    tokens_more: int
    seconds_more: float
    ttft_more_s: float | None
    """None: not known of both."""
    nanousd_more: int
    error: str = ""
    """Code of the shadow's error; the rest compares with an empty answer then."""


def compare(said: Said, shadow: Said) -> Comparison:
    ttft = None if said.ttft_s is None or shadow.ttft_s is None else shadow.ttft_s - said.ttft_s
    return Comparison(
        similarity=similarity(said.text, shadow.text),
        characters=len(said.text),
        shadow_characters=len(shadow.text),
        same_tool_calls=same_calls(said.tool_calls, shadow.tool_calls),
        same_finish_reason=said.finish_reason == shadow.finish_reason,
        tokens_more=shadow.completion_tokens - said.completion_tokens,
        seconds_more=shadow.seconds - said.seconds,
        ttft_more_s=ttft,
        nanousd_more=shadow.cost_nanousd - said.cost_nanousd,
        error=shadow.error,
    )


def similarity(one: str, other: str) -> float:
    """What two texts have in common, whatever their language: the share of runs of three characters (Dice's
    coefficient), upper and lower case and the kind of white space aside. Linear in their beginnings, which are all that
    is compared."""
    left, right = _plain(one), _plain(other)
    if left == right:
        return 1.0
    grams, others = _grams(left), _grams(right)
    everything = grams.total() + others.total()
    return 2.0 * (grams & others).total() / everything if everything else 0.0


def same_calls(calls: tuple[tuple[str, str], ...], others: tuple[tuple[str, str], ...]) -> bool:
    """Whether the same tools are called with the same arguments, in any order, however their JSON is written."""
    return sorted(map(_call, calls)) == sorted(map(_call, others))


def _plain(text: str) -> str:
    return " ".join(text[:COMPARED].casefold().split())


def _grams(text: str) -> Counter[str]:
    """Runs of characters; a text that is shorter than one is a run of its own."""
    if len(text) < GRAM:
        return Counter([text] if text else [])
    return Counter([text[at : at + GRAM] for at in range(len(text) - GRAM + 1)])


def _call(call: tuple[str, str]) -> tuple[str, str]:
    name, arguments = call
    try:
        value: Any = json.loads(arguments or "{}")
        return name, json.dumps(value, sort_keys=True)
    except (ValueError, RecursionError):
        return name, arguments
