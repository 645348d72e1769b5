"""Keys become principals, from memory; and the life of a key: made, rotated, revoked."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from appliance.errors import BadRequest, PermissionDenied, RecordsUnavailable
from appliance.identity import key_store, lost_secret
from appliance.identity.directory import Directory, Writer, admitted
from appliance.identity.key_store import Fresh, KeyInfo, NewKey
from appliance.identity.keys import SHOWN, FixedKey, KeyHasher, fixed_entries, new_key
from appliance.identity.people_work import new_id, storable_text
from appliance.identity.principal import Principal
from appliance.identity.restrictions import admits
from appliance.identity.secret import SECRET_BYTES, IdentityError, find_secret, load_secret, secret_path
from appliance.identity.snapshot import KeyRecord
from appliance.records.database import Database

logger = logging.getLogger("outpost.identity")

FIRST_START = Principal(key_id="first-start", key_name="first-start", role="owner")
"""Who makes the first key of a box."""
DAY_S = 86400.0


class KeyRing:
    """Identifies from the directory's snapshot. Use `KeyRing.open`.

    `watch` takes in what other processes change. declared: the keys of the settings, for showing. lost: why no key can
    be made, where the hasher's secret is kept nowhere.
    """

    def __init__(
        self,
        directory: Directory,
        hasher: KeyHasher,
        *,
        secret_file: Path | None = None,
        strict: bool = True,
        lost: IdentityError | None = None,
    ) -> None:
        self.directory = directory
        self.declared: Sequence[KeyInfo] = ()
        self._hasher = hasher
        self._secret_file = secret_file
        self._strict = strict
        self._lost = lost
        self._fixed: Sequence[FixedKey] = ()
        self._reloading = asyncio.Lock()
        self._used: dict[str, float] = {}

    @classmethod
    async def open(
        cls,
        database: Database,
        data_dir: Path,
        fixed: Sequence[FixedKey] = (),
        *,
        recorder: Writer | None = None,
        strict: bool = True,
    ) -> KeyRing:
        """The ring of a data folder; without a recorder it only reads and makes no secret. Raises IdentityError for a
        fixed key that cannot be used and (strict) for a secret that is missing or does not fit the database;
        RecordsUnavailable."""
        directory, lost = Directory(database, recorder), None
        secret = await asyncio.to_thread(find_secret, data_dir)
        if secret is None:
            lost = await lost_secret.missing(database, data_dir, directory.clock())
            if lost is not None and strict:
                raise lost
            if lost is not None or recorder is None:
                secret = secrets.token_bytes(SECRET_BYTES)  # kept nowhere, and fits no key
            else:
                secret = await asyncio.to_thread(load_secret, data_dir)
        ring = cls(directory, KeyHasher(secret), secret_file=secret_path(data_dir), strict=strict, lost=lost)
        await ring.reload(fixed)
        return ring

    def identify(self, presented: str, address: str | None = None) -> Principal | None:
        """The owner of a key, or None; as long for an unknown key as for a known one of the same length.

        address: where it is presented from, for keys that may not be used from everywhere. To whoever presents a
        right key: Unauthenticated when it has ended, PermissionDenied from a wrong address.
        """
        standing = self.directory.snapshot.standing(self._hasher.digest(presented))
        if standing is None:
            return None
        principal = standing.principal
        if principal is None or standing.expires_at is not None:
            principal = admitted(standing, "The API key", self.directory.clock)
        if standing.networks and not admits(standing.networks, address):
            raise PermissionDenied(
                f"The API key may not be used from the address {ascii(address or 'unknown')[1:-1]}; "
                "its restrictions name others."
            )
        self._used[principal.key_id] = self.directory.clock()
        return principal

    # --- the life of a key ---

    async def create(self, actor: Principal, wish: NewKey) -> tuple[KeyInfo, str]:
        """Make a key; the text is given this once and kept nowhere. Raises BadRequest, PermissionDenied,
        RecordsUnavailable."""
        if any(entry.name == wish.name for entry in self.declared):
            raise BadRequest(
                f"name: the settings file declares a key named {wish.name!r}; choose another", param="name"
            )
        fresh, key = self._fresh()
        return await self.directory.change(lambda tx: key_store.create(tx, actor, wish, fresh)), key

    async def rotate(
        self,
        actor: Principal,
        id_or_name: str,
        *,
        overlap_s: float = DAY_S,
        expires_at: float | None = None,
        own: bool = False,
    ) -> tuple[KeyInfo, str]:
        """A new key with the same rights; the old one ends after the overlap. `own`: only one's personal access tokens.
        Raises NotFound, BadRequest, PermissionDenied, RecordsUnavailable."""
        self._not_declared(actor, id_or_name, own=own)
        fresh, key = self._fresh()
        info = await self.directory.change(
            lambda tx: key_store.rotate(
                tx, actor, id_or_name, fresh, overlap_s=overlap_s, expires_at=expires_at, own=own
            )
        )
        return info, key

    async def revoke(self, actor: Principal, id_or_name: str, *, own: bool = False) -> KeyInfo:
        """End a key. When this returns nobody is let in by it. Raises NotFound, BadRequest, PermissionDenied,
        RecordsUnavailable."""
        self._not_declared(actor, id_or_name, own=own)
        now = self.directory.clock()
        return await self.directory.change(lambda tx: key_store.revoke(tx, actor, id_or_name, now=now, own=own))

    def _fresh(self) -> tuple[Fresh, str]:
        if self._lost is not None:
            raise self._lost
        self._check_secret(list(self.directory.snapshot.all(KeyRecord).values()))
        key = new_key(self.directory.random)
        fresh = Fresh(
            id=new_id("key", self.directory.random(10)),
            prefix=key[:SHOWN],
            digest=self._hasher.digest(key),
            secret_id=self._hasher.secret_id,
            now=self.directory.clock(),
        )
        return fresh, key

    def _not_declared(self, actor: Principal, id_or_name: str, *, own: bool) -> None:
        entry = self._declared(actor, id_or_name, own=own)
        if entry is None:
            return
        wanted = key_store.reach(actor, own=own)
        others = [
            key.id
            for key in self.directory.snapshot.all(KeyRecord).values()
            if key.name == id_or_name and key.id != entry.id and all(getattr(key, f) == v for f, v in wanted.items())
        ]
        hint = f"; or use the id of the other key of this name: {', '.join(sorted(others))}" if others else ""
        raise BadRequest(
            f"{id_or_name!a} is declared in the settings file (identity.keys); change it there and reload{hint}"
        )

    def _declared(self, actor: Principal, id_or_name: str, *, own: bool) -> KeyInfo | None:
        """The key of the settings that is meant, if `actor` may know of it."""
        wanted = key_store.reach(actor, own=own)
        for entry in self.declared:
            if id_or_name in (entry.name, entry.id) and all(getattr(entry, f) == v for f, v in wanted.items()):
                return entry
        return None

    # --- what is shown ---

    async def list(
        self,
        actor: Principal,
        *,
        after: str | None = None,
        limit: int = 100,
        only: Mapping[str, str] | None = None,
        own: bool = False,
    ) -> Sequence[KeyInfo]:
        """Keys within what `actor` may see: the declared ones first, then those of the database, revoked ones included.
        `only`: field of key_store.FILTERS → id or name. Raises BadRequest that names the field, PermissionDenied."""
        wanted = await self.directory.narrowed(actor, only or {}) | key_store.reach(actor, own=own)
        shown: list[KeyInfo] = []
        if after is None or after.startswith("fixed:"):
            begun = after is None
            for entry in self.declared:
                if begun and all(getattr(entry, field) == value for field, value in wanted.items()):
                    shown.append(entry)
                begun = begun or entry.id == after
            after = None
        if len(shown) < limit:
            query = key_store.page_of_keys(after, limit - len(shown), wanted)
            async with self.directory.database.read() as connection:
                shown += [key_store.info_of(row) for row in (await connection.execute(query)).all()]
        return [self._with_use(info) for info in shown[:limit]]

    async def show(self, actor: Principal, id_or_name: str, *, own: bool = False) -> KeyInfo:
        """One key. Raises NotFound."""
        if (entry := self._declared(actor, id_or_name, own=own)) is not None:
            return self._with_use(entry)
        wanted = key_store.reach(actor, own=own)
        rows: Sequence[Sequence[Any]] = []
        if storable_text(id_or_name) and len(id_or_name) <= 64:
            async with self.directory.database.read() as connection:
                rows = (await connection.execute(key_store.wanted_keys(id_or_name, wanted))).all()
        return self._with_use(key_store.info_of(key_store.chosen_key(id_or_name, rows)))

    def _with_use(self, info: KeyInfo) -> KeyInfo:
        used = self._used.get(info.id)
        return info if used is None else msgspec.structs.replace(info, last_used_at=used)

    # --- memory ---

    async def reload(self, fixed: Sequence[FixedKey] | None = None) -> None:
        """Read the database again; `fixed` replaces the declared keys. All or nothing. Raises IdentityError,
        RecordsUnavailable."""
        # One at a time: else one that began before another has replaced the declared keys would put the old ones back.
        async with self._reloading:
            declared = self._fixed if fixed is None else [*fixed]
            entries = self.check(declared)
            await self.directory.reload(entries, self._check_secret if self._strict else _anything)
            self._fixed = declared
            self.declared = [fixed_info(entry, self.directory) for entry in declared]

    def check(self, fixed: Sequence[FixedKey]) -> Mapping[bytes, KeyRecord]:
        """The declared keys made ready. Raises IdentityError for one that cannot be used."""
        try:
            return fixed_entries(self._hasher, fixed)
        except ValueError as error:
            raise IdentityError(str(error)) from error

    def _check_secret(self, stored: Sequence[KeyRecord]) -> None:
        now, here = self.directory.clock(), (None, self._hasher.secret_id)
        others = [
            key for key in stored if key.secret_id not in here and (key.expires_at is None or key.expires_at > now)
        ]
        if others:
            first = min(others, key=lambda key: (key.name, key.id))
            more = f", and {len(others) - 1} more," if len(others) > 1 else ""
            raise IdentityError(
                f"The key {first.name!r}{more} was made under another secret than {self._secret_file}. Restore that "
                "file from your backup; or, where it is lost for good, give the key up: outpost keys revoke "
                f"{first.id}, or all such keys and the texts that only that secret opens: outpost keys revoke-lost"
            )

    async def has_admin_or_history(self) -> bool:
        """Whether somebody can already get in as an admin, or an operator has ever made a key."""
        if any(entry.role in ("owner", "admin") for entry in self._fixed):
            return True
        async with self.directory.database.read() as connection:
            return (await connection.execute(key_store.page_of_keys(None, 1, {}))).first() is not None

    async def watch(self, interval_s: float = 1.0) -> None:
        """Take in changes that other processes make, until cancelled. Trouble is logged and outlived."""
        while True:
            try:
                if await self.directory.changed_elsewhere():
                    await self.reload()
            except (RecordsUnavailable, IdentityError) as error:
                logger.warning("keys_not_reloaded", extra={"cause": error.message})
            except Exception:
                logger.exception("keys_not_reloaded")
            await asyncio.sleep(interval_s)


def _anything(stored: Sequence[KeyRecord]) -> None:
    """For a process that identifies nobody: keys of a lost secret must still be revocable."""


def fixed_info(entry: FixedKey, directory: Directory) -> KeyInfo:
    return placed(
        KeyInfo(
            id=entry.id,
            name=entry.name,
            role=entry.role,
            source="settings",
            organization=entry.organization,
            team=entry.team,
            restrictions=entry.restrictions,
        ),
        directory,
    )


def placed(info: KeyInfo, directory: Directory) -> KeyInfo:
    """A key of the settings with the ids of its organisation and team; what is not there keeps the name."""
    organization = directory.snapshot.organization(info.organization)
    place = info.organization if organization is None else organization.id
    team = None if info.team is None else directory.snapshot.team(place, info.team)
    return msgspec.structs.replace(info, organization=place, team=info.team if team is None else team.id)


async def ensure_first_admin(ring: KeyRing, name: str = "first-admin") -> str | None:
    """On a box that nobody can enter yet, make the first admin key and give its text, once; else None."""
    if await ring.has_admin_or_history():
        return None
    _, key = await ring.create(FIRST_START, NewKey(name, role="owner"))
    return key
