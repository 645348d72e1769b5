"""The ledger's chain walked by hand, for tests of what must not break it."""

from __future__ import annotations

from sqlalchemy import select

from appliance.records.chain import exchange_body, link
from appliance.records.database import Database
from appliance.records.rows import COLUMNS
from appliance.records.tables import anchors, events, exchanges


async def walk(database: Database) -> list[int]:
    """The numbers of the records behind the anchor; each must follow the one before, and be what was hashed."""
    async with database.read() as connection:
        anchor = (await connection.execute(select(anchors).order_by(anchors.c.seq.desc()))).first()
        rows = (await connection.execute(select(*(exchanges.c[name] for name in COLUMNS), exchanges.c.hash))).all()
        others = (await connection.execute(select(events))).all()
    assert anchor is not None
    records = {row.seq: (exchange_body(tuple(row)[:-1]), bytes(row.hash)) for row in rows if row.hash is not None}
    records |= {event.seq: (event.body.encode(), bytes(event.hash)) for event in others}
    seq, digest = anchor.seq, bytes(anchor.hash)
    for number in sorted(records):
        assert number == seq + 1, f"{seq + 1} is missing"
        body, said = records[number]
        digest = link(digest, body)
        assert digest == said, f"{number} was altered"
        seq = number
    return sorted(records)
