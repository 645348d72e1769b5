"""What the translations of a canonical request into other dialects share. Pure.

The rule for all of them: what a dialect has no notion for is refused by name, and left out only where the route says
so (`drop_unsupported`). Without a word go what nobody misses in the answer:

- `name` of a message: a label. It is sent where messages have one, which is in OpenAI's family;
- `is_error` of a tool's result, where no field is for it: the result itself says so;
- `detail` of an image, where it cannot be told how closely to look;
- `cache_control`, `prompt_cache_breakpoint`: what is kept for the next request changes no answer;
- thoughts of other makers, which no model can use: see dialects.thoughts;
- `parallel_tool_calls: false`, where a target cannot be told so: of its answer no more than the first call is given,
  see dialects.adapting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.errors import BadRequest, UnsupportedParameter

_DATA_URL = re.compile(r"data:(?P<type>[^;,\s]+/[^;,\s]+)(?:;[^;,]*)*?;base64,", re.IGNORECASE)
_MOST = (1 << 53) - 1


def refuse(request: Any, fields: Mapping[str, str]) -> None:
    """Raises UnsupportedParameter for the first of `fields` (field → the cure) that asks for something."""
    for field, cure in fields.items():
        value = getattr(request, field)
        if value and value != _OFF.get(field):
            raise UnsupportedParameter(f"{field} is not supported by this target: {cure}", param=field)


_OFF = {"repetition_penalty": 1.0, "n": 1}
"""Values other than zero that change nothing."""


def data_url(url: str, field: str) -> tuple[str, str]:
    """Media type and Base64 of a data: URL. Raises BadRequest."""
    found = _DATA_URL.match(url)
    if found is not None:
        return found["type"].lower(), url[found.end() :]
    if url[:5].lower() == "data:":
        raise BadRequest(f"{field} must be Base64 with a media type, such as data:image/png;base64,….", param=field)
    raise UnsupportedParameter(
        f"{field}: this target loads no addresses; send the content as a data: URL.", param=field
    )


def file_data(file: Mapping[str, Any], field: str) -> tuple[str, str]:
    """Media type and Base64 of a file part. Raises BadRequest or UnsupportedParameter."""
    data = file.get("file_data")
    if isinstance(data, str) and data:
        return data_url(data, f"{field}.file_data")
    if file.get("file_id"):
        raise UnsupportedParameter(
            f"{field}.file_id: this target keeps no files; send the content as a data: URL in file_data.",
            param=f"{field}.file_id",
        )
    raise BadRequest(f"{field}.file_data is required: a data: URL.", param=f"{field}.file_data")


def joined(content: Any) -> str:
    """The text of a message's content, which is a string or parts of text and refusals."""
    if isinstance(content, str):
        return content
    texts = [getattr(part, "text", None) or getattr(part, "refusal", None) for part in content or ()]
    return "\n".join([text for text in texts if text])


def counted(reported: float | None) -> int:
    """A number of tokens that a target has named: whatever it is, nothing is given back for it."""
    if reported is None or reported != reported:
        return 0
    return int(min(max(reported, 0), _MOST))


def effort_of(request: Any) -> str | None:
    """How hard to think, from either field that may say so; "none" where thinking is turned off."""
    wish = request.reasoning or {}
    if wish.get("enabled") is False:
        return "none"
    effort = request.reasoning_effort or wish.get("effort")
    if effort is None or effort in EFFORTS:
        return effort
    raise BadRequest(f"reasoning.effort must be one of {', '.join(EFFORTS)}.", param="reasoning.effort")


def thinking_budget(request: Any) -> int | None:
    """Most tokens of reasoning that were asked for. Raises BadRequest."""
    budget = (request.reasoning or {}).get("max_tokens")
    if budget is None:
        return None
    if isinstance(budget, int) and not isinstance(budget, bool) and 1 <= budget < 1 << 31:
        return budget
    raise BadRequest("reasoning.max_tokens must be a whole number from 1.", param="reasoning.max_tokens")


def nearest(effort: str, takes: Sequence[str]) -> str:
    """An effort is a wish: the nearest that a model takes, rather less than more. `takes` is in their order."""
    if effort in takes:
        return effort
    at = EFFORTS.index(effort)
    less = [each for each in takes if EFFORTS.index(each) < at and each != "none"]
    return less[-1] if less else next((each for each in takes if each != "none"), takes[0])


EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
