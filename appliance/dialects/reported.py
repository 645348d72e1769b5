"""What a target of OpenAI's dialect reports as an error in an answer, be it in the middle or all of it. Pure.

Its words stay here: they may speak of its accounts and machines.
"""

from __future__ import annotations

from typing import Any

from appliance import errors

_LIMITED = frozenset({"429", "rate_limit_exceeded", "rate_limit_error", "too_many_requests"})
_UNAVAILABLE = frozenset({"503", "529", "overloaded", "overloaded_error", "server_overloaded", "service_unavailable"})
_FILTERED = frozenset({"content_filter", "content_policy_violation", "responsibleaipolicyviolation"})
_USED_UP = frozenset(
    {"402", "insufficient_quota", "insufficient_balance", "billing_hard_limit_reached", "credit_balance_too_low"}
)
_TOO_LONG = frozenset({"context_length_exceeded"})


def reported(target: str, error: Any) -> errors.OutpostError:
    """The error for the `error` of a chunk or a whole answer: an object with `code` and `type`, or whatever else."""
    told = {str(error.get(name)).lower() for name in ("code", "type", "status")} if isinstance(error, dict) else set()
    if told & _FILTERED:
        return errors.ContentFiltered(f"{target} refused to answer for what was said.")
    if told & _TOO_LONG:
        return errors.ContextLengthExceeded(f"The prompt is too long for {target}; shorten it.", param="messages")
    if told & _USED_UP:
        return errors.TargetUsedUp(f"{target} has no quota left for the gateway's account; the operator must raise it.")
    if told & _LIMITED:
        return errors.TargetLimited(f"{target} limits the rate of requests; slow down.")
    if told & _UNAVAILABLE:
        return errors.UpstreamUnavailable(f"{target} is not available at the moment.")
    return errors.UpstreamFailed(f"{target} reported an error in its answer.")


def empty(target: str) -> errors.OutpostError:
    """The error for an answer with nothing in it."""
    return errors.UpstreamFailed(f"{target} gave an empty answer.")


BOUNDED = frozenset({"length", "max_tokens", "model_length", "content_filter", "safety"})
"""Reasons, in lower case, for which an answer may end before it has said anything."""
