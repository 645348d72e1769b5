"""Refusals that name fields of the canonical request, in the words of a client that knows them by other names. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

from appliance.errors import OutpostError

_ALONE = (
    "max_completion_tokens",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
    "top_logprobs",
)
"""Names of canonical fields that are no words of English, so that a message can hold them anywhere."""
_PATH = re.compile(rf"\b(?:{'|'.join(_ALONE)}|reasoning(?=\.))(?:\.[a-z_]+|\[\d+\])*")


def told(error: OutpostError, name: Callable[[str], str]) -> OutpostError:
    """The error, with its field in its param and its message as the client calls it. `name`: of a canonical field."""
    message, param = error.message, error.param
    if name is str:
        return error
    head = ""
    if param is not None:
        error.param = name(param)
        if message.startswith(param):
            head, message = error.param, message[len(param) :]
    error.message = head + _PATH.sub(lambda found: name(found[0]), message)
    return error
