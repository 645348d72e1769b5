"""What the store of limits does with the database in the recorder's thread; see store.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update

from appliance.limits.counters import Counter
from appliance.records.tables import exchanges, limit_counters
from appliance.records.transaction import Transaction

Row = dict[str, Any]
INTERRUPTED = "limits.interrupted"
"""The event of a start that took over what was held."""
MOST_TOLD = 100
"""Counters that one event tells of."""


def replace(keys: Iterable[str], rows: list[Row]) -> Callable[[Transaction], None]:
    """A work that puts `rows` in the place of those of `keys`."""
    gone = list(dict.fromkeys(keys))

    def work(tx: Transaction) -> None:
        for at in range(0, len(gone), 500):
            tx.connection.execute(delete(limit_counters).where(limit_counters.c.counter.in_(gone[at : at + 500])))
        if rows:
            tx.connection.execute(insert(limit_counters), rows)

    return work


def lower(counters: Iterable[Counter]) -> Callable[[Transaction], None]:
    """A work that lets the rows of these say what is held of them now; their states stay as they are."""
    rows = [{"key": each.key, "start": each.held_start, "amount": each.held} for each in counters]
    query = (
        update(limit_counters)
        .where(limit_counters.c.counter == bindparam("key"))
        .values(window_start=bindparam("start"), held=bindparam("amount"))
    )

    def work(tx: Transaction) -> None:
        tx.connection.execute(query, rows)

    return work


def written(ids: list[str]) -> Callable[[Transaction], set[str]]:
    """A work that tells which of these exchanges have a row."""

    def work(tx: Transaction) -> set[str]:
        found: set[str] = set()
        for at in range(0, len(ids), 500):
            query = select(exchanges.c.id).where(exchanges.c.id.in_(ids[at : at + 500]))
            found.update(tx.connection.execute(query).scalars())
        return found

    return work


def tell(tx: Transaction, taken: list[Row]) -> None:
    """Put on the ledger which counters say more than the rows' charges add up to, how much, and from when it counts."""
    for first in range(0, len(taken), MOST_TOLD):
        tx.append(INTERRUPTED, {"counters": taken[first : first + MOST_TOLD]})
