"""OpenAI answers that come from elsewhere and pass as bytes. Sans-I/O.

Nothing is written again: each event is decoded just far enough to see that it is sound, what it counts
and whether it is the end; then the very bytes that came in go out.

An answer with nothing in it is a failure of the target, unless it ended at its bound or by a filter, or the target
reports tokens that nobody sees, such as hidden reasoning. So is one whose bytes are not UTF-8, also in what is not
looked at: a client cannot read it. Counts that cannot be read are none, and do no harm to the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from appliance.dialects import errors, sse
from appliance.dialects.reported import BOUNDED, empty, reported
from appliance.dialects.tally import Tally, WireUsage, uncounted
from appliance.dialects.wire import encode
from appliance.dialects.withheld import Net
from appliance.errors import OutpostError, UpstreamFailed

T = TypeVar("T")


class _Choice(msgspec.Struct, frozen=True, gc=False):
    index: int | None = 0
    finish_reason: str | None = None


_SHOWN = ("content", "refusal", "reasoning", "reasoning_content", "tool_calls", "function_call")
"""The fields of a delta that carry something a client can see, in whatever form: some targets' content is a list."""


class _FirstChoice(msgspec.Struct, frozen=True):
    finish_reason: str | None = None
    delta: dict[str, Any] | None = None
    text: Any = None

    def shows(self) -> bool:
        """Whether a client would see anything of it, or may see nothing for a good reason."""
        if self.text or (self.finish_reason and self.finish_reason.lower() in BOUNDED):
            return True
        return self.delta is not None and any(self.delta.get(field) for field in _SHOWN)


class _Chunk(msgspec.Struct, frozen=True, gc=False):
    choices: list[_Choice] | None = None
    usage: WireUsage | None = None
    error: Any = None


class _FirstChunk(msgspec.Struct, frozen=True):
    choices: list[_FirstChoice] | None = None


_NOTHING = frozenset({b"", b"null", b'""', b"[]", b"{}"})
_ABSENT = msgspec.Raw(b"")


class _WholeMessage(msgspec.Struct, frozen=True):
    content: str | list[msgspec.Raw] | None = None
    refusal: msgspec.Raw = _ABSENT
    reasoning: msgspec.Raw = _ABSENT
    reasoning_content: msgspec.Raw = _ABSENT
    tool_calls: msgspec.Raw = _ABSENT
    function_call: msgspec.Raw = _ABSENT


class _WholeChoice(msgspec.Struct, frozen=True):
    index: int | None = None
    finish_reason: str | None = None
    message: _WholeMessage | None = None
    text: str | None = None

    def bounded(self) -> bool:
        """Whether it may have nothing in it for a good reason."""
        return self.finish_reason is not None and self.finish_reason.lower() in BOUNDED

    def says(self) -> bool:
        """Whether a client would see anything of it."""
        message = self.message
        if self.text or (message is not None and message.content):
            return True
        return message is not None and any(bytes(getattr(message, field)) not in _NOTHING for field in _SHOWN[1:])


class _WholeAnswer(msgspec.Struct, frozen=True):
    """A whole chat answer or completion, as far as it is looked at."""

    choices: list[_WholeChoice] | None = None
    usage: WireUsage | None = None
    error: Any = None


_FRAME = ("id", "object", "created", "model", "system_fingerprint")
"""What each chunk of an answer says."""

_decode = msgspec.json.Decoder(_Chunk).decode
_decode_first = msgspec.json.Decoder(_FirstChunk).decode
_decode_whole = msgspec.json.Decoder(_WholeAnswer).decode

BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decoded(decode: Callable[[bytes], T], data: bytes) -> T:
    """What `decode` reads of a shape with a `usage`. Raises one of BAD_JSON."""
    if not data.isascii():
        data.decode()  # what is only passed over is not looked at
    try:
        return decode(data)
    except msgspec.ValidationError:
        return decode(uncounted(data))


def read_whole(body: bytes, tally: Tally, target: str, _request: object = None) -> None:
    """Check a whole chat answer or completion and count it. Raises UpstreamFailed for anything that is none, and
    another of the tree for what the target itself reports as an error."""
    try:
        answer = decoded(_decode_whole, body)
    except BAD_JSON:
        raise UpstreamFailed(f"{target} gave an answer that is not of the expected form.") from None
    if answer.error is not None:
        raise reported(target, answer.error)
    if answer.choices is None:
        raise UpstreamFailed(f"{target} gave an answer that is not of the expected form.")
    for place, choice in enumerate(answer.choices):
        if choice.finish_reason:
            tally.finish_reasons[place if choice.index is None else choice.index] = choice.finish_reason
    if not answer.choices:
        raise empty(target)
    if answer.usage is not None and tally.take(answer.usage):
        return
    if any(choice.says() for choice in answer.choices):
        tally.source = "none"  # no answer is for nothing: it is estimated by its size
    elif not any(choice.bounded() for choice in answer.choices):
        raise empty(target)
    elif answer.usage is not None and answer.usage.completion_tokens == 0:
        tally.source = "reported"


class PassThrough:
    """A stream on its way through: reads in, bytes to send out. Before the first token it lets nothing out.

    `done` is set by the end marker, and by a connection that ends once `complete` is set. Raises UpstreamFailed for
    what is not sound, and another of the tree for what the target itself reports as an error.
    """

    def __init__(self, target: str, tally: Tally, *, keep_usage: bool, secret: bytes = b"", choices: int = 1) -> None:
        """secret: what must not pass. choices: how many were asked for."""
        self.done = False
        self.complete = False
        """Every choice has ended: all that may still come are counts and the end marker."""
        self._left = choices
        """Choices that have not ended."""
        self._ended: set[int] = set()
        self._net = Net(secret, target) if secret else None
        self._target = target
        self._tally = tally
        self._keep_usage = keep_usage
        self._framer = sse.Framer()
        self._held = b""
        self._first = b""
        """The first event that shows something."""
        self._open = False
        self.counted = False
        """The target has reported tokens of its answer."""

    def feed(self, read: bytes) -> bytes:
        """What may be sent after `read`; b"" as `read` means that the connection has ended."""
        if self._net is not None:
            self._net.check(read)
        try:
            events, verbatim = self._framer.feed(read) if read else (self._rest(), False)
        except sse.EventTooLarge:
            raise UpstreamFailed(f"{self._target} sent an event that is too large.") from None
        kept = [data for data in events if self._take(data)]
        if not events and self._open and read.startswith(b":") and read.endswith((b"\n\n", b"\r\n\r\n")):
            return read  # a heartbeat, which is for all who stand between: no event was under way, else it had ended
        if not verbatim:
            out = _rendered(kept)
        else:
            out = read if len(kept) == len(events) else _without(events, kept, read)
        if not read and not self.done:
            if not self.complete:
                raise UpstreamFailed(f"{self._target} ended its answer without saying that it was complete.")
            self.done = True
        if not self._open:
            out = self._before_first(kept, out)
        return out + self._unsaid() if self.done and not self._ended else out

    def _rest(self) -> list[bytes]:
        """What a connection that has ended left behind. Half an event does no harm to an answer that is complete."""
        return [data for data in self._framer.end() if not self.complete or data == sse.DONE or _sound(data)]

    def end(self) -> bytes:
        """The end marker."""
        return sse.DONE_EVENT

    def fail(self, error: OutpostError) -> bytes:
        """The event that ends an answer that failed."""
        return errors.stream_event(error)

    def _before_first(self, kept: list[bytes], out: bytes) -> bytes:
        self._held += out
        self._first = first = next((data for data in kept if self._shows(data)), b"")
        if not (first or self.done):
            return b""
        if not first and not (self._held and self.counted):
            raise empty(self._target)
        self._open = True
        out, self._held = self._held, b""
        return out

    def _unsaid(self) -> bytes:
        """The end of the choices of a target that has said that it is done, but not why: clients look for a reason."""
        try:
            told: dict[str, Any] = msgspec.json.decode(self._first)
        except BAD_JSON:
            told = {}
        choice = (told.get("choices") or [{}])[0]
        called = bool((choice.get("delta") or {}).get("tool_calls"))
        said: dict[str, Any] = {"text": ""} if "text" in choice else {"delta": {}}
        said |= {"logprobs": None, "finish_reason": "tool_calls" if called else "stop"}
        frame = {name: told[name] for name in _FRAME if name in told}
        self._tally.finish_reasons |= dict.fromkeys(range(self._left), said["finish_reason"])
        self._ended |= set(range(self._left))
        return sse.event(encode({**frame, "choices": [{"index": index, **said} for index in range(self._left)]}))

    def _shows(self, data: bytes) -> bool:
        try:
            return any(choice.shows() for choice in _decode_first(data).choices or ())
        except BAD_JSON:
            raise self._unsound() from None

    def _take(self, data: bytes) -> bool:
        """Count one event; whether it goes to the client."""
        if self.done or data == sse.DONE:
            self.done = True
            return False
        try:
            if not data.isascii():
                data.decode()  # what is only passed over is not looked at
            chunk = _decode(data)
        except BAD_JSON:
            chunk = self._uncounted(data)
        tally = self._tally
        if chunk.error is not None:
            raise reported(self._target, chunk.error)
        if chunk.choices:
            if tally.source != "reported":
                tally.completion_tokens += 1
                tally.source = "estimated"
            for choice in chunk.choices:
                if choice.finish_reason:  # some say "" until there is one
                    index = choice.index or 0
                    tally.finish_reasons[index] = choice.finish_reason
                    self._end_of(index)
        elif chunk.choices is None and chunk.usage is None:
            raise self._unsound()
        if chunk.usage is not None:
            self.counted |= tally.take(chunk.usage)
            return self._keep_usage or bool(chunk.choices)
        return True

    def _uncounted(self, data: bytes) -> _Chunk:
        try:
            return decoded(_decode, data)
        except BAD_JSON:
            raise self._unsound() from None

    def _end_of(self, index: int) -> None:
        if index not in self._ended:
            self._ended.add(index)
            self._left -= 1
            self.complete = self._left <= 0

    def _unsound(self) -> OutpostError:
        return UpstreamFailed(f"{self._target} sent a chunk that is not of the expected form.")


def _sound(data: bytes) -> bool:
    try:
        _decode(data)
    except BAD_JSON:
        return False
    return True


def _without(events: list[bytes], kept: list[bytes], read: bytes) -> bytes:
    """`read` with only those of its `events` that are `kept`. Mostly one at the end goes, the marker."""
    if kept == events[: len(kept)]:
        return read[: len(read) - len(_rendered(events[len(kept) :]))]
    return _rendered(kept)


def _rendered(events: list[bytes]) -> bytes:
    # JSON in several lines of data is rare but allowed; between its tokens a space is as good as a line end.
    return b"".join([sse.event(data.replace(b"\n", b" ")) for data in events])
