"""The one error tree of the gateway.

Each error knows its HTTP status, a stable `code`, OpenAI's `type`, and whether a retry can help
(`retryable`: another target may do better).
A message says what was wrong, where, and what to do. Dialects render errors in their own shape;
nothing else in the house builds an error body.
"""

from __future__ import annotations

import math
from typing import ClassVar


class OutpostError(Exception):
    """Root. `param` names the request field at fault, `retry_after_s` becomes `Retry-After`."""

    status: ClassVar[int] = 500
    code: str = "internal_error"
    type: ClassVar[str] = "server_error"
    retryable: bool = False
    again: bool = False
    """Whether the same target is worth another try."""
    elsewhere: bool = False
    """Whether another target may take the same request, although this one never will."""
    at_once: bool = False
    """Whether it says nothing about the target: only the key was refused, and there is another one."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code


# --- the caller's side: 4xx ---------------------------------------------------------------------


class BadRequest(OutpostError):
    """Malformed JSON, a wrong type, a value out of range."""

    status = 400
    code = "invalid_value"
    type = "invalid_request_error"


class UnsupportedParameter(BadRequest):
    """A field that exists but that the endpoint or target cannot honour; refused by name."""

    code = "unsupported_parameter"


class ContextLengthExceeded(BadRequest):
    """The prompt is too long for this target; one with a larger context may take it."""

    code = "context_length_exceeded"
    elsewhere = True


class ContentFiltered(BadRequest):
    """A target refused the request, or stopped its answer, for what it says. Asking elsewhere would go round that, so
    a route has to want it (`fallback_on_content_filter`)."""

    code = "content_filter"


class Unauthenticated(OutpostError):
    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class PermissionDenied(OutpostError):
    status = 403
    code = "permission_denied"
    type = "permission_error"


class NotFound(OutpostError):
    status = 404
    code = "not_found"
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(OutpostError):
    status = 405
    code = "method_not_allowed"
    type = "invalid_request_error"


class BodyTimeout(OutpostError):
    status = 408
    code = "request_timeout"
    type = "invalid_request_error"


class ClientStalled(OutpostError):
    """The client stopped taking its answer; its connection is cut, so nobody reads this."""

    status = 408
    code = "client_stalled"
    type = "invalid_request_error"


class BodyTooLarge(OutpostError):
    status = 413
    code = "request_too_large"
    type = "invalid_request_error"


class UnsupportedMediaType(OutpostError):
    status = 415
    code = "unsupported_media_type"
    type = "invalid_request_error"


class RateLimited(OutpostError):
    """One of our own limits, which no other target changes, or a target's (`TargetLimited`)."""

    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"
    retryable = True


class TargetLimited(RateLimited):
    """A target limits the rate of requests: after a while it takes more, and others may take it now."""

    again = True


class TargetUsedUp(TargetLimited):
    """The gateway's account at a target has nothing left: asking again does not help, another target may."""

    code = "upstream_quota"
    again = False


# --- our side and the targets' side: 5xx --------------------------------------------------------


class InternalError(OutpostError):
    """A defect of ours. The message never carries an exception's text."""


class Unavailable(OutpostError):
    """Nothing can answer right now; come back."""

    status = 503
    code = "service_unavailable"
    type = "server_error"
    retryable = True


class Overloaded(Unavailable):
    """Every slot is busy and the waiting list is full."""

    code = "overloaded"


class ModelLoading(Unavailable):
    code = "model_loading"


class RecordsUnavailable(Unavailable):
    """The exchange could not be made durable, so no answer may be given."""

    code = "records_unavailable"
    retryable = False


class ShuttingDown(Unavailable):
    code = "shutting_down"
    retryable = False


class UpstreamError(OutpostError):
    """A target failed: refused the connection, answered 5xx, broke its stream, or spoke nonsense."""

    status = 502
    code = "upstream_error"
    type = "server_error"
    retryable = True


class UpstreamFailed(UpstreamError):
    """A failure that may well not happen again: a reset, a 500. The same target is worth another try."""

    again = True


class UpstreamUnavailable(UpstreamError):
    status = 503
    code = "upstream_unavailable"
    again = True


class TargetResting(UpstreamUnavailable):
    """A target that has failed too often is left alone for a while: nothing was sent to it."""

    again = False
    elsewhere = True


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"


class Diverged(UpstreamError):
    """A target did not go on with what the client has already seen, in the way it was asked to. There may be another
    way; whoever asks keeps count of them."""

    code = "answer_diverged"
    again = True


class DeadlineExceeded(UpstreamTimeout):
    """The time for the whole request is over, whichever target was at work."""

    code = "deadline_exceeded"
    retryable = False
    total_s: float = math.inf
    """How long that time was."""


class TargetBusy(Unavailable):
    """A target works on as much as it may: nothing was sent to it. Nobody is told, since whoever finds all targets busy
    waits for one of them."""

    code = "overloaded"
    elsewhere = True


class EngineLost(UpstreamError):
    """The engine process went away while it worked on the request."""

    status = 503
    code = "engine_lost"
    again = True


class GuardModelError(OutpostError):
    """A guard model's files are missing, changed, or not what their manifest says: it is not loaded."""

    code = "guard_model_invalid"


def forget_way(error: BaseException | None) -> None:
    """Drop the frames that an error has come through, once all is said about it. They hold what belonged to the
    exchange, and some of them the error: a circle."""
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
