"""Anthropic's answers that come from elsewhere and pass as bytes. Sans-I/O.

As in `dialects.passing` nothing is written again: each event is decoded just far enough to see that it is sound, what
it counts and whether it is the end.
"""

from __future__ import annotations

from typing import Any

from appliance.dialects import sse
from appliance.dialects.messages import errors
from appliance.dialects.messages.events import (
    BOUNDED,
    Counts,
    WireEvent,
    event,
    finish_reason,
    is_event,
    named,
    read_event,
)
from appliance.dialects.messages.reader import decode_whole
from appliance.dialects.reported import empty
from appliance.dialects.sse import NamedFramer
from appliance.dialects.tally import Tally
from appliance.dialects.withheld import Net
from appliance.errors import OutpostError, UpstreamFailed

_TEXTS = ("text_delta", "thinking_delta", "input_json_delta")


def read_whole(body: bytes, tally: Tally, target: str, _request: object = None) -> None:
    """Check a whole message and count it. Raises UpstreamFailed for anything that is none."""
    answer = decode_whole(body, target)
    if answer.usage is not None:
        counts = Counts()
        counts.take(answer.usage)
        counts.put(tally)
        if not counts.output and answer.says():
            tally.source = "none"  # no answer is for nothing: it is estimated by its size
    tally.finish_reasons[0] = finish_reason(answer.stop_reason or "")


class MessagesPassing:
    """A stream on its way through: reads in, bytes to send out. Before the first token it lets nothing out.

    `done` is set by message_stop, which is held back for `end`, and by the end of a connection over which all else has
    come. Raises UpstreamFailed for what is not sound, and what the target itself reports as an error.
    """

    def __init__(self, target: str, tally: Tally, *, secret: bytes = b"") -> None:
        """secret: what must not pass."""
        self.done = False
        self.complete = False
        """The reason for the end has come: all that may still come is the end marker."""
        self._net = Net(secret, target) if secret else None
        self._target = target
        self._tally = tally
        self._framer = NamedFramer()
        self._counts = Counts()
        self._shown = False
        """Something that a client can see has come."""
        self._open = False
        self._held = b""
        self._last = b""
        """The event that ends the message, as the target wrote it."""

    def feed(self, read: bytes) -> bytes:
        """What may be sent after `read`; b"" as `read` means that the connection has ended."""
        if self._net is not None:
            self._net.check(read)
        try:
            found, verbatim = self._framer.feed(read) if read else (self._rest(), False)
        except sse.EventTooLarge:
            raise UpstreamFailed(f"{self._target} sent an event that is too large.") from None
        kept: list[tuple[str, bytes]] = []
        for data in found:
            if self.done:
                break
            item = read_event(data, self._target)
            if self._take(item):
                kept.append((item.type, data))
            else:
                self._last = data
        out = read if verbatim and len(kept) == len(found) else _written(kept)
        if not read and not self.done:
            if not self.complete:
                raise UpstreamFailed(f"{self._target} ended its answer without saying that it was complete.")
            self.done = True
        return out if self._open else self._before_first(out)

    def _rest(self) -> list[bytes]:
        """What a connection that has ended left behind. Half an event does no harm to an answer that is complete."""
        return [data for data in self._framer.end() if not self.complete or is_event(data)]

    def end(self) -> bytes:
        """message_stop. Call it once the answer is done and on record."""
        return named("message_stop", self._last) if self._last else event("message_stop", {})

    def fail(self, error: OutpostError) -> bytes:
        return errors.stream_event(error)

    def _before_first(self, out: bytes) -> bytes:
        self._held += out
        if self.complete and not self._shown and not self._counts.output:
            raise empty(self._target)
        if not (self._shown or self.complete):
            return b""
        self._open = True
        out, self._held = self._held, b""
        return out

    def _take(self, item: WireEvent) -> bool:
        """Count one event; whether it goes to the client now."""
        tally = self._tally
        if item.type == "content_block_delta" and item.delta is not None:
            delta = item.delta
            self._shown |= bool(delta.text or delta.thinking or delta.partial_json) or delta.type not in _TEXTS
            if tally.source != "reported":
                tally.completion_tokens += 1
                tally.source = "estimated"
        elif item.type == "content_block_start":
            # A text begins with nothing; what is no text shows by itself.
            self._shown |= item.content_block is not None and item.content_block.type not in ("text", "thinking")
        elif item.type == "message_start" and item.message is not None:
            self._counts.take(item.message.usage)
            self._counts.put_prompt(tally)
        elif item.type == "message_delta" and item.delta is not None:
            self._counts.take(item.usage)
            if item.usage is not None:
                self._counts.put(tally)
            if item.delta.stop_reason is not None:
                self.complete = True
                self._shown |= item.delta.stop_reason in BOUNDED
                tally.finish_reasons[0] = finish_reason(item.delta.stop_reason)
        elif item.type == "message_stop":
            if not self.complete:
                raise UpstreamFailed(f"{self._target} ended its answer without saying why.")
            self.done = True
            return False
        return True


def make_passing(target: str, tally: Tally, frame: Any, secret: bytes) -> MessagesPassing:
    return MessagesPassing(target, tally, secret=secret)


def _written(events: list[tuple[str, bytes]]) -> bytes:
    # JSON in several lines of data is rare but allowed; between its tokens a space is as good as a line end.
    return b"".join([named(name, data.replace(b"\n", b" ")) for name, data in events])
