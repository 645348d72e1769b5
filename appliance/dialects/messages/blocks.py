"""The content of a message, block after block, out of what comes in any order. Sans-I/O.

In Anthropic's form one block is open at a time. The pieces of parallel calls may come mixed, in other dialects: what
belongs to a block that is not open yet waits until the open one is complete.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from appliance.dialects.messages.events import BAD_JSON
from appliance.dialects.wire import too_deep
from runtimes.engine import Delta, ToolCallDelta

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


MOST_DEPTH = 64
_BARE = ("text", "thinking")
"""Blocks whose beginning says nothing, so that no event tells of it."""


def as_object(arguments: str) -> dict[str, Any] | None:
    """A call's arguments; None where they are no JSON object, or one that is nested too deep to be written again."""
    if not arguments.strip():
        return {}
    try:
        data = arguments.encode()
        return None if too_deep(data, MOST_DEPTH) else _decode_object(data)
    except (*BAD_JSON, UnicodeEncodeError):
        return None


class Block(msgspec.Struct):
    """One block. `call` is the number of its call, -1 for blocks of other kinds."""

    kind: str
    """text, thinking, redacted_thinking or tool_use."""
    call: int = -1
    id: str = ""
    name: str = ""
    pieces: list[str] = []
    """Of its text, its thoughts, its arguments or its data."""
    sent: int = 0
    """How many of the pieces have been written."""
    signature: str = ""
    closed: bool = False
    """Nothing more belongs to it."""

    def text(self) -> str:
        return "".join(self.pieces)


class Blocks:
    """The blocks that deltas add up to, in the order in which they begin."""

    def __init__(self) -> None:
        self.waiting: deque[Block] = deque()
        """Those that have not ended; the first is the one that is open."""
        self._calls: dict[int, Block] = {}
        self._last: Block | None = None
        self.refused = False
        """Some of it was a refusal, which is a text here."""

    @property
    def called(self) -> bool:
        return bool(self._calls)

    def take(self, delta: Delta) -> None:
        if delta.reasoning:
            self._current("thinking").pieces.append(delta.reasoning)
        if delta.reasoning_signature:
            block = self._current("thinking")
            block.signature = delta.reasoning_signature
            block.closed = True
        if delta.reasoning_data:
            self._begin(Block("redacted_thinking", pieces=[delta.reasoning_data], closed=True))
        if delta.text:
            self._current("text").pieces.append(delta.text)
        if delta.refusal:
            self.refused = True
            self._current("text").pieces.append(delta.refusal)
        for piece in delta.tool_calls:
            self._call(piece)

    def _current(self, kind: str) -> Block:
        """The last block if more of this kind belongs to it, else a new one."""
        last = self._last
        if last is not None and last.kind == kind and not last.closed:
            return last
        return self._begin(Block(kind))

    def _call(self, piece: ToolCallDelta) -> None:
        block = self._calls.get(piece.index)
        if block is None:
            block = self._calls[piece.index] = self._begin(Block("tool_use", piece.index))
        block.id = block.id or piece.id
        block.name = block.name or piece.name
        if piece.arguments and not block.closed:
            block.pieces.append(piece.arguments)

    def _begin(self, block: Block) -> Block:
        if self._last is not None and self._last.kind != "tool_use":
            self._last.closed = True
        self._last = block
        self.waiting.append(block)
        return block

    def settle(self, kind: str, *, empty: bool) -> Block | None:
        """End all blocks but the one that is open at the client, as `kind`, and give it; "" where none is open.
        `empty`: there is nothing in it yet."""
        last, ended = self._last, self._last is not None and self._last.closed
        for block in self.waiting:
            block.closed = True
        self.waiting.clear()
        self._last = None
        if not kind:
            return None
        if last is None or last.kind != kind or (empty and kind in _BARE):
            return self._begin(Block(kind))
        last.closed = ended
        last.signature = ""  # the client has it
        self._last = last
        self.waiting.append(last)
        return last

    def next(self) -> bool:
        """Whether the open block has ended because another one waits; it is `waiting[0]` still."""
        if len(self.waiting) < 2:
            return False
        block = self.waiting[0]
        if block.kind == "tool_use" and not block.closed:
            # A call is complete when its arguments are; only that tells, where calls come mixed.
            block.closed = bool(block.pieces) and block.pieces[-1].rstrip().endswith("}") and _complete(block)
        return block.closed


def _complete(block: Block) -> bool:
    return as_object(block.text()) is not None
