"""How a long step tells how far it is: called from the thread that does the work, cheap to ignore."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """`done` and `total` are bytes; `total` 0 = not known. `note` is a line worth showing, such as pip's."""

    def step(self, what: str, done: int, total: int) -> None: ...

    def note(self, line: str) -> None: ...


class Sink(Protocol):
    """Whatever takes the bytes of a file in order."""

    def write(self, piece: bytes, /) -> object: ...


class Quiet:
    """Tells nobody."""

    def step(self, what: str, done: int, total: int) -> None:
        return None

    def note(self, line: str) -> None:
        return None
