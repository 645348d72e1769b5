"""Keys in the database: hashes, names and dates, never a key."""

from __future__ import annotations

import base64
import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from appliance.errors import BadRequest, NotFound
from appliance.identity.permissions import ROLES, Role
from appliance.records.database import Database, unavailable
from appliance.records.tables import api_keys, counters

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_EPOCH = "identity_epoch"
_INFO = ("id", "name", "role", "prefix", "created_at", "revoked_at")


class KeyInfo(msgspec.Struct, frozen=True):
    """What may be shown of a key. Times are unix seconds; a key from the settings has none and no prefix."""

    id: str
    name: str
    role: Role
    prefix: str = ""
    created_at: float | None = None
    revoked_at: float | None = None
    source: Literal["database", "settings"] = "database"


class StoredKey(msgspec.Struct, frozen=True):
    """A valid key as the ring needs it."""

    info: KeyInfo
    digest: bytes
    secret_id: str


class KeyStore:
    """Reads and writes keys. Every method may raise RecordsUnavailable.

    clock: unix seconds. random: bytes for a key's id.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._database = database
        self._clock = clock
        self._random = random
        self._watching: AsyncConnection | None = None
        self._version: int | None = None

    async def insert(self, name: str, role: Role, prefix: str, digest: bytes, secret_id: str) -> KeyInfo:
        """Keep a new key. Raises BadRequest (param `name`) for a bad name or one that is in use."""
        if not _NAME.fullmatch(name):
            raise BadRequest(
                "name: use 1 to 64 letters, digits and . _ @ + - , beginning with a letter or digit", param="name"
            )
        if role not in ROLES:
            raise BadRequest(f"role: must be one of {', '.join(ROLES)}", param="role")
        key_id = "key_" + base64.b32encode(self._random(10)).decode().lower()
        info = KeyInfo(id=key_id, name=name, role=role, prefix=prefix, created_at=self._clock())
        async with self._database.write() as connection:
            same = select(api_keys.c.id).where(api_keys.c.name == name, api_keys.c.revoked_at.is_(None))
            if (await connection.execute(same)).first() is not None:
                raise BadRequest(
                    f"name: there is a key named {name!r} already; choose another name or revoke it first", param="name"
                )
            values = {field: getattr(info, field) for field in _INFO}
            await connection.execute(insert(api_keys).values(**values, digest=digest, secret_id=secret_id))
            await _raise_epoch(connection)
        return info

    async def revoke(self, id_or_name: str) -> KeyInfo:
        """End a key for good; one that was ended before stays as it was. Raises NotFound."""
        unknown = NotFound(f"There is no key with the id or name {id_or_name!r}; see `outpost keys list`.")
        if not _NAME.fullmatch(id_or_name):
            raise unknown
        async with self._database.write() as connection:
            found = (
                await connection.execute(
                    select(*(api_keys.c[field] for field in _INFO))
                    .where(
                        or_(
                            api_keys.c.id == id_or_name,
                            (api_keys.c.name == id_or_name) & api_keys.c.revoked_at.is_(None),
                        )
                    )
                    .order_by(api_keys.c.id == id_or_name)
                )
            ).all()
            if not found:
                raise unknown
            info = KeyInfo(*found[-1])
            if info.revoked_at is None:
                info = msgspec.structs.replace(info, revoked_at=self._clock())
                await connection.execute(
                    update(api_keys).where(api_keys.c.id == info.id).values(revoked_at=info.revoked_at)
                )
                await _raise_epoch(connection)
        return info

    async def list(self) -> Sequence[KeyInfo]:
        """Every key ever made, the revoked ones too, oldest first."""
        query = select(*(api_keys.c[field] for field in _INFO)).order_by(api_keys.c.created_at, api_keys.c.id)
        async with self._database.read() as connection:
            return [KeyInfo(*row) for row in (await connection.execute(query)).all()]

    async def load(self) -> tuple[int, Sequence[StoredKey]]:
        """The epoch and the valid keys, as of one moment."""
        query = select(*(api_keys.c[field] for field in _INFO), api_keys.c.digest, api_keys.c.secret_id).where(
            api_keys.c.revoked_at.is_(None)
        )
        async with self._database.read() as connection:
            epoch = await _epoch(connection)
            rows = (await connection.execute(query)).all()
        return epoch, [StoredKey(KeyInfo(*row[:6]), row.digest, row.secret_id) for row in rows]

    async def ever_had_keys(self) -> bool:
        async with self._database.read() as connection:
            return bool((await connection.execute(select(func.count()).select_from(api_keys))).scalar_one())

    async def epoch_if_changed(self) -> int | None:
        """The epoch if the file was written to since the last call, else None.

        Keeps one connection for this, because SQLite counts changes as seen from a connection; the
        question itself reads no page of the file.
        """
        try:
            if self._watching is None:
                self._watching = await self._database.bare()
                self._version = None
            version = (await self._watching.exec_driver_sql("PRAGMA data_version")).scalar_one()
            if version == self._version:
                return None
            epoch = await _epoch(self._watching)
            # Only now: an error above must leave the change to be seen by the next call.
            self._version = version
            return epoch
        except DBAPIError as error:
            await self.close()
            raise unavailable(error) from error

    async def close(self) -> None:
        """Give back the watching connection."""
        watching, self._watching = self._watching, None
        if watching is not None:
            await watching.close()


async def _epoch(connection: AsyncConnection) -> int:
    found = (await connection.execute(select(counters.c.value).where(counters.c.name == _EPOCH))).scalar()
    return int(found or 0)


async def _raise_epoch(connection: AsyncConnection) -> None:
    statement = upsert(counters).values(name=_EPOCH, value=1)
    await connection.execute(
        statement.on_conflict_do_update(index_elements=["name"], set_={"value": counters.c.value + 1})
    )
