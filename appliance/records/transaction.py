"""What a work may do with the database while the writer's transaction is open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert

from appliance.records import chain
from appliance.records.tables import events


@dataclass(slots=True)
class Tail:
    """The end of the ledger. seq: the newest number that was ever given. last: that of the newest record, which is the
    same unless records are gone. hash: that record's, which the next one follows."""

    seq: int
    hash: bytes
    last: int


class Transaction:
    """One work's part of the writer's transaction.

    connection: for statements; the writer begins, commits and rolls back, the work never does. A work may run more
    than once (its first try may be undone because of somebody else's row), so it must not touch anything but this
    connection. `tail` is a copy; it counts only if the work succeeds. `at` is unix seconds.
    """

    __slots__ = ("at", "connection", "tail")

    def __init__(self, connection: Connection, tail: Tail, at: float) -> None:
        self.connection = connection
        self.tail = Tail(tail.seq, tail.hash, tail.last)
        self.at = at

    def append(self, kind: str, body: dict[str, Any]) -> int:
        """Put an event onto the ledger; answer its number. `body`: texts, integers, booleans, lists, objects.

        Raises ValueError, TypeError for a body that the ledger cannot keep (chain.event_body).
        """
        seq, at_us = self.tail.seq + 1, chain.micro(self.at)
        text = chain.event_body(seq, kind, at_us, body)
        digest = chain.link(self.tail.hash, text)
        row = {"seq": seq, "kind": kind, "at_us": at_us, "body": text.decode(), "hash": digest}
        self.connection.execute(insert(events), row)
        self.tail = Tail(seq, digest, seq)
        return seq

    def skip_to(self, seq: int) -> None:
        """Give no number up to `seq` again: somebody has seen them, though their records are gone."""
        self.tail.seq = max(self.tail.seq, seq)


@dataclass(frozen=True, slots=True)
class Work:
    """Something to do in the writer's transaction. durable: its commit must survive a power cut."""

    run: Callable[[Transaction], Any]
    durable: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """In place of a work's result: it raised this, and nothing of it was kept."""

    error: Exception
