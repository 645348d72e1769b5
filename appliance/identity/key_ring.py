"""The keys in memory, and the one owner of that memory."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from appliance.errors import BadRequest, NotFound, RecordsUnavailable
from appliance.identity.key_store import KeyInfo, KeyStore
from appliance.identity.keys import SHOWN, FixedKey, KeyHasher, KeyTable, fixed_entries, new_key
from appliance.identity.principal import Principal, Role
from appliance.identity.secret import IdentityError, load_secret, secret_path
from appliance.records.database import Database

logger = logging.getLogger("outpost.identity")


class KeyRing:
    """Identifies from memory; changes go to the database first and then to memory, before the call returns.

    `watch` takes in what other processes change. Use `KeyRing.open`.
    """

    def __init__(
        self,
        store: KeyStore,
        hasher: KeyHasher,
        fixed: Sequence[FixedKey],
        *,
        random: Callable[[int], bytes] = secrets.token_bytes,
        secret_file: Path | None = None,
    ) -> None:
        self._store = store
        self._hasher = hasher
        self._fixed = list(fixed)
        self._random = random
        self._secret_file = secret_file
        self._table = KeyTable(hasher)
        self._changing = asyncio.Lock()
        self._epoch = -1

    @classmethod
    async def open(cls, database: Database, data_dir: Path, fixed: Sequence[FixedKey] = ()) -> KeyRing:
        """The ring of a data folder. Raises IdentityError for a secret that does not fit the database or a
        fixed key that cannot be used, RecordsUnavailable."""
        hasher = KeyHasher(await asyncio.to_thread(load_secret, data_dir))
        ring = cls(KeyStore(database), hasher, fixed, secret_file=secret_path(data_dir))
        await ring.reload()
        return ring

    def identify(self, presented: str) -> Principal | None:
        """The owner of a key, or None; as long for an unknown key as for a known one of the same length."""
        return self._table.identify(presented)

    async def create(self, name: str, role: Role) -> tuple[KeyInfo, str]:
        """Make a key; the text is given this once and kept nowhere. Raises BadRequest, RecordsUnavailable."""
        if any(entry.name == name for entry in self._fixed):
            raise BadRequest(f"name: the settings file declares a key named {name!r}; choose another", param="name")
        key = new_key(self._random)
        digest = self._hasher.digest(key)
        async with self._changing:
            info = await self._store.insert(name, role, key[:SHOWN], digest, self._hasher.secret_id)
            self._table.add(digest, Principal(key_id=info.id, key_name=info.name, role=info.role))
        return info, key

    async def revoke(self, id_or_name: str) -> KeyInfo:
        """End a key. When this returns nobody is let in by it. Raises NotFound, BadRequest, RecordsUnavailable."""
        async with self._changing:
            try:
                info = await self._store.revoke(id_or_name)
            except NotFound:
                if any(id_or_name in (entry.name, entry.id) for entry in self._fixed):
                    raise BadRequest(
                        f"{id_or_name!r} is declared in the settings file (identity.keys); remove it there and reload"
                    ) from None
                raise
            self._table.remove(info.id)
        return info

    async def list(self) -> Sequence[KeyInfo]:
        """Every key: the declared ones first, then those of the database, revoked ones included."""
        return [*fixed_infos(self._fixed), *await self._store.list()]

    async def reload(self, fixed: Sequence[FixedKey] | None = None) -> None:
        """Read the database again; `fixed` replaces the declared keys. All or nothing. Raises IdentityError,
        RecordsUnavailable."""
        async with self._changing:
            declared = self._fixed if fixed is None else [*fixed]
            try:
                entries = fixed_entries(self._hasher, declared)
            except ValueError as error:
                raise IdentityError(str(error)) from error
            epoch, stored = await self._store.load()
            for key in stored:
                if key.secret_id != self._hasher.secret_id:
                    raise IdentityError(
                        f"The key {key.info.name!r} was made under another secret than {self._secret_file}. Restore "
                        f"that file from your backup, or give the key up: outpost keys revoke {key.info.id}"
                    )
                entries[key.digest] = Principal(key_id=key.info.id, key_name=key.info.name, role=key.info.role)
            self._table.replace(entries)
            self._fixed = declared
            self._epoch = epoch

    async def has_admin_or_history(self) -> bool:
        """Whether somebody can already get in as an admin, or an operator has ever made a key."""
        return any(entry.role in ("owner", "admin") for entry in self._fixed) or await self._store.ever_had_keys()

    async def watch(self, interval_s: float = 1.0) -> None:
        """Take in changes that other processes make, until cancelled. Trouble is logged and outlived."""
        try:
            while True:
                try:
                    epoch = await self._store.epoch_if_changed()
                    if epoch is not None and epoch != self._epoch:
                        await self.reload()
                except (RecordsUnavailable, IdentityError) as error:
                    logger.warning("keys_not_reloaded", extra={"cause": error.message})
                await asyncio.sleep(interval_s)
        finally:
            await self._store.close()


def fixed_infos(fixed: Sequence[FixedKey]) -> Sequence[KeyInfo]:
    return [KeyInfo(id=entry.id, name=entry.name, role=entry.role, source="settings") for entry in fixed]


async def ensure_first_admin(ring: KeyRing, name: str = "first-admin") -> str | None:
    """On a box that nobody can enter yet, make the first admin key and give its text, once; else None."""
    if await ring.has_admin_or_history():
        return None
    _, key = await ring.create(name, "owner")
    return key
