"""A request without one field more, where a target refuses the field for its value. Pure.

What a target never takes is known before it is asked (`Outbound.unknown`). What it takes in one request and not in
another – a temperature while it thinks, a stop sequence of blanks – shows only when the request is written for it, or
when it answers. On a route with `drop_unsupported` the field is left out then, and the rest is sent.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

DROPPABLE = frozenset(
    (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "seed",
        "stop",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "parallel_tool_calls",
        "reasoning",
        "reasoning_effort",
        "verbosity",
        "service_tier",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    )
)
"""Fields that only shape the answer. What is asked, with which tools, and the form of the answer never go."""
_PARTS = {"stop": list, "reasoning": dict}
"""Of these a part can go alone."""
_WITH = {"logprobs": ("top_logprobs",)}
"""Fields that mean nothing without another one."""
_PARAM = re.compile(r"(?P<field>[a-z_]+)(?:\[(?P<at>\d+)\]|\.(?P<name>[a-z_]+))?")


def without(request: T, param: str | None) -> T | None:
    """The request without what a refusal names; None where it names nothing that may go, or that is not there."""
    found = _PARAM.fullmatch(param or "")
    if found is None or (field := found["field"]) not in DROPPABLE:
        return None
    value = getattr(request, field, None)
    if value is None:
        return None
    left: Any = None
    if found["at"] or found["name"] or (field == "stop" and isinstance(value, list)):
        if not isinstance(value, _PARTS.get(field, type(None))):
            return None
        left = _without_part(value, found["at"], found["name"])
        if left == value:
            return None
    gone = {name: None for name in _WITH.get(field, ()) if hasattr(request, name)}
    changed: T = msgspec.structs.replace(request, **{field: left or None}, **gone)  # type: ignore[type-var]
    return changed


def _without_part(value: Any, at: str | None, name: str | None) -> Any:
    """What is left of a list or a mapping; all of it where no part is named: nobody says which to do without."""
    if isinstance(value, list):
        return value if at is None else [each for k, each in enumerate(value) if k != int(at)]
    return {key: each for key, each in value.items() if key != name}
