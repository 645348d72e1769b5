"""What a target that speaks Responses tells of its answer: why it ended, what it used, what went wrong. Pure."""

from __future__ import annotations

import msgspec

from appliance import errors
from appliance.dialects.chat_answer import take_usage
from appliance.dialects.reported import reported
from appliance.dialects.tally import Tally
from runtimes.engine import FinishReason, Usage

BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_MOST = (1 << 53) - 1

TERMINAL = frozenset(("response.completed", "response.incomplete"))
FAILED = frozenset(("response.failed", "response.cancelled", "error"))

_FILTERED = frozenset(
    ("invalid_prompt", "image_content_policy_violation", "content_policy_violation", "content_filter")
)


class _InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int | None = None


class WireUsage(msgspec.Struct, frozen=True):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class WireError(msgspec.Struct, frozen=True):
    code: str | int | None = None
    message: str | None = None
    type: str | None = None


class WireDetails(msgspec.Struct, frozen=True):
    reason: str | None = None


def usage_of(wire: WireUsage | None) -> Usage:
    """The event. A number that a target has named is never below nothing."""
    wire = wire or WireUsage()
    cached = wire.input_tokens_details.cached_tokens if wire.input_tokens_details else 0
    thought = wire.output_tokens_details.reasoning_tokens if wire.output_tokens_details else 0
    return Usage(
        _count(wire.input_tokens), _count(wire.output_tokens), _count(cached), reasoning_tokens=_count(thought)
    )


def _count(reported: int | None) -> int:
    return min(max(reported or 0, 0), _MOST)


def count(tally: Tally, usage: Usage) -> None:
    """What was used, into the tally; see `take_usage`."""
    take_usage(tally, usage)


def reason_of(status: str | None, details: WireDetails | None, *, called: bool) -> FinishReason:
    """Why an answer ended. called: it holds function calls."""
    if status == "incomplete":
        return "content_filter" if details is not None and details.reason == "content_filter" else "length"
    return "tool_calls" if called else "stop"


def failure(target: str, error: WireError | None) -> errors.OutpostError:
    """A target's own report of an error, without its words: they may speak of its accounts and machines."""
    if error is not None and error.code in _FILTERED:
        return errors.ContentFiltered(f"{target} refused to answer for what was said.")
    return reported(target, None if error is None else msgspec.to_builtins(error))


def unsound(target: str, what: str = "chunk") -> errors.OutpostError:
    return errors.UpstreamFailed(f"{target} sent a {what} that is not of the expected form.")


def unended(target: str) -> errors.OutpostError:
    return errors.UpstreamFailed(f"{target} ended its answer without saying that it was complete.")
