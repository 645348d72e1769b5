"""One choice's tokens → the deltas that a client sees. The same code serves streams and whole answers."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence

from runtimes.engine import Delta, FinishReason, PositionLogprobs, ToolCallDelta
from runtimes.llamacpp.text import LogprobQueue, StopFilter
from runtimes.llamacpp.tools import ToolScanner


class OutputParser:
    """Sans-I/O. Feed every token except end-of-generation ones, then `finish` once."""

    def __init__(
        self,
        index: int,
        *,
        stops: Sequence[str] = (),
        scanner: ToolScanner | None = None,
        marks: Mapping[int, str] | None = None,
    ) -> None:
        """`marks`: control tokens that are part of the tool format, with their texts (their pieces are empty)."""
        self._index = index
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._filter = StopFilter(stops)
        self._scanner = scanner
        self._marks = marks or {}
        self._entries = LogprobQueue()
        self._text_in = 0

    @property
    def stopped(self) -> bool:
        """A stop string was found: end the choice with finish("stop")."""
        return self._filter.stopped

    def feed(self, token: int, piece: bytes, logprobs: PositionLogprobs | None = None) -> Delta | None:
        """Take the next token; None when nothing can be shown yet. Stop strings do not count inside of calls."""
        text = self._marks.get(token) or self._decoder.decode(piece)
        if logprobs is not None and (self._scanner is None or self._scanner.plain):
            self._entries.add(self._text_in, logprobs)
        calls: list[ToolCallDelta] = []
        if self._scanner is not None:
            self._text_in += len(text) if self._scanner.plain else 0
            text, calls = self._scanner.feed(text)
            if calls:
                self._entries.clear()
        else:
            self._text_in += len(text)
        shown, _ = self._filter.feed(text)
        return self._delta(shown, calls, self._entries.take(self._filter.released))

    def finish(self, reason: FinishReason) -> tuple[Delta | None, FinishReason]:
        """Release what was held back. "stop" becomes "tool_calls" when every call that began is whole."""
        text = self._decoder.decode(b"", final=True)
        calls: list[ToolCallDelta] = []
        if self._scanner is not None:
            text, calls = self._scanner.feed(text)
            text += self._scanner.flush()
        shown = self._filter.feed(text)[0] + self._filter.flush()
        in_text = self._scanner is None or self._scanner.plain
        rest = self._entries.take_all() if in_text and not self.stopped else self._entries.take(self._filter.released)
        if self._scanner is not None and self._scanner.calls and reason == "stop":
            reason = "tool_calls" if self._scanner.complete == self._scanner.calls else "length"
        return self._delta(shown, calls, rest), reason

    def _delta(self, text: str, calls: list[ToolCallDelta], entries: list[PositionLogprobs]) -> Delta | None:
        if not text and not calls and not entries:
            return None
        return Delta(index=self._index, text=text, tool_calls=calls, logprobs=entries)
