"""What was asked and answered: which texts are kept, sealed for their subject, and opened again.

    policy ▶ redacted (if so) ▶ cut to its size ▶ compressed ▶ AES-256-GCM under the subject's key

The ledger knows a content only by `digest`, an HMAC under a key of the subject's: it shows that nothing was altered,
and once the key is gone nobody can test a guess against it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec
from cryptography.exceptions import InvalidTag
from sqlalchemy import insert, select

from appliance.errors import OutpostError
from appliance.records.database import Database
from appliance.records.redaction import redact_json
from appliance.records.subject_keys import Random, SubjectKey, SubjectKeys, subject_name
from appliance.records.tables import contents
from appliance.records.transaction import Transaction
from appliance.settings.recording import Content, Records

Parts = Mapping[str, bytes]
"""`request` and `answer`, each as JSON (or any text) in UTF-8."""

_SMALL = 16 * 1024
"""Bytes that are sealed at once; more goes to a thread."""
_NONCE_BYTES = 12
_CUT = 1
_LEVEL = 6


class ContentDamaged(OutpostError):
    """A kept content does not open with its subject's key."""

    code = "content_damaged"


class SealedContent(msgspec.Struct, frozen=True):
    """A row of `contents`. data: ciphertext, of a byte of flags and the zlib stream. created_at: unix seconds."""

    exchange_id: str
    part: str
    subject: str
    policy: str
    nonce: bytes
    data: bytes
    created_at: float


class Kept(msgspec.Struct, frozen=True):
    """All that is kept of one exchange's texts. digest: hexadecimal, for the exchange's row."""

    key: SubjectKey
    contents: tuple[SealedContent, ...]
    digest: str


class OpenedContent(msgspec.Struct, frozen=True):
    """A part as it was kept. cut: it was longer than `records.max_content`. kept_at: unix seconds."""

    part: str
    policy: str
    cut: bool
    kept_at: float
    text: str


# --- which texts are kept: pure -------------------------------------------------------------------


def choose_content(
    records: Records, *, route: str | None, team: Collection[str] = (), organization: Collection[str] = ()
) -> Content:
    """What is kept of an exchange's texts. route: the route's model. team, organization: id and name of each.

    Of the rules that fit, the one that names more counts; among equals one with a team before one with a route.
    """
    best, chosen = (0, False, False), records.content
    for rule in records.content_rules:
        if rule.route is not None and rule.route != route:
            continue
        if rule.team is not None and rule.team not in team:
            continue
        if rule.organization is not None and rule.organization not in organization:
            continue
        named = sum(each is not None for each in (rule.team, rule.route, rule.organization))
        rank = (named, rule.team is not None, rule.route is not None)
        if rank > best:
            best, chosen = rank, rule.content
    return chosen


# --- sealing: pure but for `random` -----------------------------------------------------------------


def seal(
    key: SubjectKey, exchange_id: str, policy: Content, parts: Parts, *, most: int, now: float, random: Random
) -> Kept:
    """Redact if the policy says so, cut each part to `most` bytes, compress, encrypt. CPU only."""
    sealed = []
    digest = hmac.new(key.mac, _joined(exchange_id), hashlib.sha256)
    for part, body in sorted(parts.items()):
        cut = False
        if policy == "redacted":
            body, cut = redact_json(body, most)
        if len(body) > most:
            # Not in the middle of a character.
            cut, body = True, body[:most].decode("utf-8", "ignore").encode()
        digest.update(_joined(part) + len(body).to_bytes(8, "big") + body)
        nonce = random(_NONCE_BYTES)
        plain = bytes([_CUT if cut else 0]) + zlib.compress(body, _LEVEL)
        data = key.cipher.encrypt(nonce, plain, _joined(exchange_id, part, key.subject))
        sealed.append(SealedContent(exchange_id, part, key.subject, policy, nonce, data, now))
    return Kept(key, tuple(sealed), digest.hexdigest())


def open_sealed(key: SubjectKey, content: SealedContent) -> OpenedContent:
    """Raises ContentDamaged for what was altered, moved to another exchange, or sealed under another key."""
    try:
        plain = key.cipher.decrypt(
            content.nonce, content.data, _joined(content.exchange_id, content.part, content.subject)
        )
        body = zlib.decompress(plain[1:])
    except (InvalidTag, ValueError, zlib.error):
        raise ContentDamaged(
            f"The {content.part} of {content.exchange_id} does not open: it was altered after it was kept."
        ) from None
    cut = bool(plain[0] & _CUT)
    return OpenedContent(content.part, content.policy, cut, content.created_at, body.decode("utf-8", "replace"))


def _joined(*texts: str) -> bytes:
    """Texts as bytes that no other texts give: each behind its length."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return b"".join(len(each).to_bytes(4, "big") + each for each in encoded)


# --- keeping and reading ----------------------------------------------------------------------------


class Keeper:
    """Seals contents for the recorder and opens them for those who may read.

    wrapping_key: 32 bytes (see SubjectKeys). max_content: most bytes of a part; may be changed by a reload.
    clock: unix seconds.
    """

    def __init__(
        self,
        database: Database,
        wrapping_key: bytes,
        *,
        max_content: int = 1 << 20,
        random: Random = secrets.token_bytes,
        clock: Callable[[], float] = time.time,
        capacity: int = 1024,
    ) -> None:
        self.keys = SubjectKeys(wrapping_key, database, random, capacity=capacity)
        self.max_content = max_content
        self._database = database
        self._random = random
        self._clock = clock

    async def keep(self, subject: str, exchange_id: str, policy: Content, parts: Parts) -> Kept | None:
        """The parts, sealed; None where nothing is to be kept. `insert_content` writes them. Raises
        RecordsUnavailable, ContentKeyError."""
        parts = {name: body for name, body in parts.items() if body}
        if policy == "none" or not parts:
            return None
        key = await self.keys.get(subject_name(subject))

        def work() -> Kept:
            return seal(
                key,
                exchange_id,
                policy,
                parts,
                most=self.max_content,
                now=self._clock(),
                random=self._random,
            )

        return work() if sum(map(len, parts.values())) <= _SMALL else await asyncio.to_thread(work)

    def insert_content(self, kept: Kept) -> Callable[[Transaction], int]:
        """The work that writes what `keep` gave, with the subject's key if it is the first; answers how many parts.
        0: the subject was erased between sealing and writing, and nothing was kept."""

        def work(transaction: Transaction) -> int:
            if not self.keys.store(transaction, kept.key):
                return 0
            rows = [msgspec.structs.asdict(each) for each in kept.contents]
            transaction.connection.execute(insert(contents), rows)
            return len(rows)

        return work

    async def read(self, exchange_id: str) -> Sequence[OpenedContent]:
        """What is kept of an exchange; empty if nothing is (any more). Raises RecordsUnavailable, ContentKeyError,
        ContentDamaged."""
        query = select(*contents.c).where(contents.c.exchange_id == exchange_id).order_by(contents.c.part.desc())
        async with self._database.read() as connection:
            rows = [SealedContent(**row._mapping) for row in (await connection.execute(query)).all()]
        found = []
        for row in rows:
            key = await self.keys.find(row.subject)
            if key is None:
                continue
            found.append(open_sealed(key, row))
        return found
