"""Answers of a target that speaks Responses, on their way to a client that does too. Sans-I/O.

Events pass as the bytes that came in. Only the response object, which comes at the beginning and at the end, is written
again where a frame is given: the answer is kept here, not at the target, so that its id, and what it says of its
keeping, have to be this house's. Ids of items stay the target's: encrypted reasoning is bound to them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.dialects import sse
from appliance.dialects.answer import Frame
from appliance.dialects.passing import decoded
from appliance.dialects.reported import empty
from appliance.dialects.responses import errors, reported, resource
from appliance.dialects.responses.errors import event
from appliance.dialects.responses.reported import BAD_JSON
from appliance.dialects.responses.resource import Response, asked_of
from appliance.dialects.sse import NamedFramer
from appliance.dialects.tally import Tally
from appliance.dialects.wire import encode
from appliance.dialects.withheld import Net
from appliance.errors import OutpostError, UpstreamFailed


class _Kind(msgspec.Struct, frozen=True):
    type: str = ""


class _Seen(msgspec.Struct, frozen=True):
    """What is looked at of every event."""

    type: str = ""
    sequence_number: int | None = None
    delta: Any = None
    item: _Kind | None = None


class _Response(msgspec.Struct, frozen=True):
    status: str | None = None
    output: list[_Kind] | None = None
    usage: reported.WireUsage | None = None
    incomplete_details: reported.WireDetails | None = None
    error: reported.WireError | None = None


class _Life(msgspec.Struct, frozen=True):
    """An event of the response as a whole, or of an error."""

    response: _Response | None = None
    error: reported.WireError | None = None
    code: str | None = None


_decode = msgspec.json.Decoder(_Seen).decode
_decode_life = msgspec.json.Decoder(_Life).decode
_decode_response = msgspec.json.Decoder(_Response).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode

_LIFE = frozenset(("response.created", "response.queued", "response.in_progress"))
_QUIET = _LIFE | {
    "keepalive",
    "ping",
    "response.content_part.added",
    "response.output_text.annotation.added",
    "response.reasoning_summary_part.added",
}
"""Events that show a client nothing of an answer yet."""
_QUIET_ITEMS = frozenset(("message", "reasoning"))
_CALLS = frozenset(("function_call", "custom_tool_call"))


class ResponsesPassing:
    """A stream on its way through: reads in, bytes to send out.

    Before the first token it lets nothing out; the event that says that the answer is complete is held back for `end`.
    `done` is set once it has come. Raises UpstreamFailed for what is not sound, and what the target reports as an
    error.
    """

    def __init__(self, target: str, tally: Tally, *, secret: bytes = b"", frame: Frame | None = None) -> None:
        """secret: what must not pass. frame: whose id the answer gets; None leaves the target's."""
        self.done = False
        self._target = target
        self._tally = tally
        self._net = Net(secret, target) if secret else None
        self._frame = frame
        self._framer = NamedFramer()
        self._whole_events = True
        """What was read so far ended where an event ends."""
        self._held = b""
        self._open = False
        self._shown = False
        self._called = False
        self._number = -1
        """Of the last event."""
        self._response: Response | None = None
        self._last = b""

    def feed(self, read: bytes) -> bytes:
        """What may be sent after `read`; b"" as `read` means that the connection has ended."""
        if self._net is not None:
            self._net.check(read)
        try:
            events = self._framer.feed(read)[0] if read else self._framer.end()
        except sse.EventTooLarge:
            raise UpstreamFailed(f"{self._target} sent an event that is too large.") from None
        started, self._whole_events = self._whole_events, read.endswith(b"\n\n") and b"\r" not in read
        changed = not (started and self._whole_events)
        kept: list[tuple[str, bytes]] = []
        for data in events:
            if self.done:
                changed = True
                break
            kind, passed = self._take(data)
            changed = changed or passed is not data
            if passed:
                kept.append((kind, passed))
        if not read and not self.done:
            raise reported.unended(self._target)
        return self._release(b"".join([_event(*each) for each in kept]) if changed else read)

    def _release(self, out: bytes) -> bytes:
        if self._open:
            return out
        self._held += out
        if not (self._shown or self.done):
            return b""
        self._open = True
        out, self._held = self._held, b""
        return out

    def _take(self, data: bytes) -> tuple[str, bytes]:
        """Count one event; its type, and what of it goes to the client now."""
        if data == sse.DONE:
            raise reported.unended(self._target)
        try:
            if not data.isascii():
                data.decode()  # what is only passed over is not looked at
            seen = _decode(data)
        except BAD_JSON:
            raise reported.unsound(self._target) from None
        kind = seen.type
        if not kind:
            raise reported.unsound(self._target)
        if seen.sequence_number is not None:
            self._number = seen.sequence_number
        if kind in reported.FAILED or kind in reported.TERMINAL or kind in _LIFE:
            return kind, self._life(kind, data)
        if seen.item is not None and seen.item.type in _CALLS:
            self._called = True
        quiet = kind in _QUIET or (kind == "response.output_item.added" and self._says_nothing(seen))
        if quiet or seen.delta == "":
            return kind, data
        self._shown = True
        if seen.delta is not None and self._tally.source != "reported":
            self._tally.completion_tokens += 1
            self._tally.source = "estimated"
        return kind, data

    def _says_nothing(self, seen: _Seen) -> bool:
        return seen.item is None or seen.item.type in _QUIET_ITEMS

    def _life(self, kind: str, data: bytes) -> bytes:
        try:
            told = _decode_life(data)
        except BAD_JSON:
            raise reported.unsound(self._target) from None
        if kind in reported.FAILED:
            error = told.response.error if told.response is not None else told.error
            raise reported.failure(self._target, error or reported.WireError(told.code))
        if told.response is None:
            raise reported.unsound(self._target)
        shape = _decode_object(data)
        self._response = response = shape["response"]
        passed = data
        if self._frame is not None:
            self._response = shape["response"] = _ours(response, self._frame)
            passed = encode(shape)
        if kind not in reported.TERMINAL:
            return passed
        self._ended(kind, told.response)
        self._last = _event(kind, passed)
        return b""

    def _ended(self, kind: str, response: _Response) -> None:
        status = "incomplete" if kind == "response.incomplete" else response.status
        called = self._called or _has_calls(response)
        _count(self._tally, response, status, called)
        if not self._shown and _is_empty(response, status):
            raise empty(self._target)
        self.done = True

    def end(self) -> bytes:
        """The event that was held back."""
        return self._last

    def fail(self, error: OutpostError) -> bytes:
        """The last event of an answer that failed."""
        if not self._open or self._response is None:
            return errors.stream_event(error, self._number + 1 if self._open else 0)
        shape = {"type": "response.failed", "response": resource.failed(self._response, error)}
        return event("response.failed", encode({**shape, "sequence_number": self._number + 1}))

    def response(self) -> Response | None:
        """The response object as it was last told: the final one once the answer is complete."""
        return self._response


def make_passing(target: str, tally: Tally, frame: Frame, secret: bytes) -> ResponsesPassing:
    return ResponsesPassing(target, tally, secret=secret, frame=frame)


def _event(kind: str, data: bytes) -> bytes:
    # JSON in several lines of data is rare but allowed; between its tokens a space is as good as a line end.
    return event(kind, data.replace(b"\n", b" "))


def _ours(response: Response, frame: Frame) -> Response:
    """The target's response object as one that is kept here."""
    asked = asked_of(frame)
    return {
        **response,
        "id": frame.id,
        "store": asked.get("store") is not False,
        "background": bool(asked.get("background")),
        "previous_response_id": asked.get("previous_response_id"),
    }


def _has_calls(response: _Response) -> bool:
    return any(item.type in _CALLS for item in response.output or ())


def _is_empty(response: _Response, status: str | None) -> bool:
    """Nothing was said, and nothing explains it. What only thought, and was counted, is an answer of a kind."""
    return not response.output and status != "incomplete" and not reported.usage_of(response.usage).completion_tokens


def _count(tally: Tally, response: _Response, status: str | None, called: bool) -> None:
    tally.finish_reasons[0] = reported.reason_of(status, response.incomplete_details, called=called)
    if response.usage is not None:
        reported.count(tally, reported.usage_of(response.usage))


def read_whole(body: bytes, tally: Tally, target: str, _request: object = None) -> None:
    """Check a whole answer and count it. Raises UpstreamFailed, and what the target itself reports as an error."""
    try:
        response = decoded(_decode_response, body)
    except BAD_JSON:
        raise reported.unsound(target, "answer") from None
    if response.status in ("failed", "cancelled") or response.error is not None:
        raise reported.failure(target, response.error)
    if response.output is None or response.status not in ("completed", "incomplete"):
        raise reported.unsound(target, "answer")
    _count(tally, response, response.status, _has_calls(response))
    if _is_empty(response, response.status):
        raise empty(target)
    if response.output and not tally.completion_tokens:
        tally.source = "none"  # no answer is for nothing: it is estimated by its size


def adopt(body: bytes, frame: Frame) -> tuple[bytes, Response]:
    """A whole answer that `read_whole` has found sound, as one that is kept here: its bytes, and the same as data."""
    response = _ours(_decode_object(body), frame)
    return encode(response), response
