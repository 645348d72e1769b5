"""Reading an HTTP/1.1 answer as cheaply as Python can, without I/O.

The load generator shares the machine with what it measures, so it looks at the bytes only as far
as needed to know that an answer is whole: status, framing, number of content pieces, `[DONE]`.
"""

from __future__ import annotations

import re

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens": *(\d+)')
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens": *(\d+)')
_TAIL = 2048
_CARRY = 16


class BrokenAnswer(Exception):
    """The bytes are no HTTP answer that this reader knows."""


class AnswerReader:
    """Takes the bytes of one answer in pieces of any size; `complete` says when it has ended.

    `piece` matches one piece of content in the body (at most 16 bytes a match); `feed` returns how
    many new ones came with these bytes.
    """

    def __init__(self, piece: re.Pattern[bytes]) -> None:
        self._piece = piece
        self._head = b""
        self._in_body = False
        self._length = -1
        self._chunked = False
        self._rest = b""
        self._left = 0
        self._carry = b""
        self.status = 0
        self.pieces = 0
        self.body_bytes = 0
        self.start = b""
        self.tail = b""
        self.complete = False
        self.closes = False
        """The server closes the connection after this answer."""

    def feed(self, data: bytes) -> int:
        """Raises BrokenAnswer. Bytes after the end of the answer count as broken, too."""
        if self.complete:
            raise BrokenAnswer("bytes after the end of the answer")
        if not self._in_body:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return 0
            self._read_head(head)
        before = self.pieces
        if self._chunked:
            self._unchunk(data)
        elif data:
            self._body(data)
            self.complete = 0 <= self._length <= self.body_bytes
        return self.pieces - before

    def end_of_file(self) -> None:
        """The peer closed: ends an answer that has no length and is not chunked."""
        if self._in_body and not self._chunked and self._length < 0:
            self.complete = True

    @property
    def begun(self) -> bool:
        return self._in_body or bool(self._head)

    @property
    def done(self) -> bool:
        """The stream ended with OpenAI's terminator."""
        return self.tail.rstrip().endswith(b"data: [DONE]")

    @property
    def completion_tokens(self) -> int:
        return _last_number(_COMPLETION_TOKENS, self.tail)

    @property
    def prompt_tokens(self) -> int:
        return _last_number(_PROMPT_TOKENS, self.tail)

    def _read_head(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 ") or not head[9:12].isdigit():
            raise BrokenAnswer("no HTTP/1.1 status line")
        self.status = int(head[9:12])
        self._in_body = True
        self.closes = _CLOSE.search(head) is not None
        if _CHUNKED.search(head):
            self._chunked = True
        elif length := _LENGTH.search(head):
            self._length = int(length.group(1))
            self.complete = self._length == 0

    def _unchunk(self, data: bytes) -> None:
        """`_left` counts what is still to come of the current chunk, its final CRLF included."""
        data = self._rest + data
        at, end = 0, len(data)
        texts: list[bytes] = []
        while at < end:
            if self._left > 0:
                take = min(self._left, end - at)
                text = data[at : at + take]
                self._left -= take
                if self._left < 2:
                    text = text[: len(text) - (2 - self._left)]
                texts.append(text)
                at += take
                continue
            line = data.find(b"\r\n", at)
            if line < 0:
                break
            try:
                size = int(data[at:line].partition(b";")[0], 16)
            except ValueError:
                raise BrokenAnswer("a chunk size is no hexadecimal number") from None
            if size == 0:
                if end < line + 4:
                    break
                self.complete = True
                at = end
                break
            self._left = size + 2
            at = line + 2
        self._rest = data[at:]
        if texts:
            self._body(b"".join(texts))

    def _body(self, text: bytes) -> None:
        self.body_bytes += len(text)
        if len(self.start) < 300:
            self.start += text[:300]
        self.tail = text[-_TAIL:] if len(text) >= _TAIL else (self.tail + text)[-_TAIL:]
        text = self._carry + text
        last = 0
        for match in self._piece.finditer(text):
            self.pieces += 1
            last = match.end()
        self._carry = text[max(last, len(text) - _CARRY) :]


def _last_number(pattern: re.Pattern[bytes], text: bytes) -> int:
    found = pattern.findall(text)
    return int(found[-1]) if found else 0
