"""One key a person: made with the first content, wrapped by the box's own key, gone when the person is erased.

Everything that is secret in a content hangs on the subject's key. Deleting that row makes the content – and the
digests of it that stand on the ledger – worth nothing, also in backups that hold no copy of the row.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import insert, select

from appliance.errors import OutpostError
from appliance.records.database import Database
from appliance.records.tables import subject_keys
from appliance.records.transaction import Transaction

WRAPPING_PURPOSE = b"outpost subject keys v1"
"""What the wrapping key is derived from the box's secret for (HKDF's info)."""

KEY_BYTES = 32
_NONCE_BYTES = 12
_VERSION = b"\x01"
_MAX_SUBJECT = 128

Random = Callable[[int], bytes]


class ContentKeyError(OutpostError):
    """A subject's key cannot be opened; the message says what to restore."""

    code = "content_key"


class SubjectKey:
    """An open key. `fresh`: not read from the database but made here, so that the row may have to be made as well."""

    __slots__ = ("__weakref__", "cipher", "erased", "fresh", "mac", "subject", "wrapped")

    def __init__(self, subject: str, key: bytes, wrapped: bytes, *, fresh: bool) -> None:
        self.subject = subject
        self.wrapped = wrapped
        self.fresh = fresh
        self.erased = False
        """Set by the writer's thread when the subject is erased: nothing more is kept under this key."""
        self.cipher = AESGCM(_derive(key, b"outpost content v1"))
        self.mac = _derive(key, b"outpost content digest v1")

    def __repr__(self) -> str:
        """Without the key: a representation ends up in logs and tracebacks."""
        return f"SubjectKey({self.subject!r})"


def _derive(key: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, None, info).derive(key)


def subject_name(text: str) -> str:
    """The form under which a subject's key is kept: as it is, or hashed where it is too long for its column."""
    if len(text) <= _MAX_SUBJECT and text.isprintable():
        return text
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def wrap(wrapping: AESGCM, subject: str, key: bytes, nonce: bytes) -> bytes:
    """A key as it may lie in the database: version, nonce (12 bytes), ciphertext; bound to its subject."""
    return _VERSION + nonce + wrapping.encrypt(nonce, key, subject.encode())


def unwrap(wrapping: AESGCM, subject: str, wrapped: bytes) -> bytes:
    """Raises ContentKeyError for a row that was made under another secret or for another subject, or is damaged."""
    nonce, sealed = wrapped[1 : 1 + _NONCE_BYTES], wrapped[1 + _NONCE_BYTES :]
    try:
        if wrapped[:1] != _VERSION:
            raise ValueError
        return wrapping.decrypt(nonce, sealed, subject.encode())
    except (InvalidTag, ValueError):
        raise ContentKeyError(
            f"The content key of {subject!r} does not open with this box's secret. "
            "Restore secrets/master.key from the backup that goes with the database; where it is lost for good, "
            "stop the gateway and call: outpost keys revoke-lost"
        ) from None


class SubjectKeys:
    """The open keys in memory. `get` is for the event loop, `store` and `mark_erased` for the writer's thread.

    wrapping_key: 32 bytes, derived from the box's secret for WRAPPING_PURPOSE. capacity: keys kept open.
    For one subject there is never more than one object at a time, so that marking it reaches whoever seals with it.
    """

    def __init__(self, wrapping_key: bytes, database: Database, random: Random, *, capacity: int = 1024) -> None:
        self._wrapping = AESGCM(wrapping_key)
        self._database = database
        self._random = random
        self._capacity = capacity
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, SubjectKey] = OrderedDict()
        self._alive: weakref.WeakValueDictionary[str, SubjectKey] = weakref.WeakValueDictionary()

    async def get(self, subject: str) -> SubjectKey:
        """The subject's key, from memory, else from the database, else a fresh one that `store` will put there.

        Raises RecordsUnavailable, ContentKeyError.
        """
        return self._cached(subject) or self._keep(subject, await self._read(subject))

    async def find(self, subject: str) -> SubjectKey | None:
        """As `get`, but None for a subject that has no key."""
        if (key := self._cached(subject)) is not None:
            return key
        wrapped = await self._read(subject)
        return None if wrapped is None else self._keep(subject, wrapped)

    def store(self, transaction: Transaction, key: SubjectKey) -> bool:
        """See to it that the key's row is there. False: the subject was erased meanwhile, or has another key by now,
        and nothing may be kept under this one."""
        if key.erased:
            return False
        query = select(subject_keys.c.wrapped_key).where(subject_keys.c.subject == key.subject)
        found = transaction.connection.scalar(query)
        if (found is None and not key.fresh) or (found is not None and bytes(found) != key.wrapped):
            # Read just before the subject was erased: the next one reads again.
            self._forget(key)
            return False
        if found is not None:
            return True
        row = {"subject": key.subject, "wrapped_key": key.wrapped, "created_at": transaction.at}
        transaction.connection.execute(insert(subject_keys), row)
        return True

    def mark_erased(self, subject: str) -> None:
        """Forget the subject's key here as well; called in the transaction that deletes its row."""
        with self._lock:
            key = self._alive.get(subject)
        if key is not None:
            self._forget(key)

    def _forget(self, key: SubjectKey) -> None:
        with self._lock:
            key.erased = True
            if self._alive.get(key.subject) is key:
                del self._alive[key.subject]
                self._recent.pop(key.subject, None)

    def _cached(self, subject: str) -> SubjectKey | None:
        with self._lock:
            key = self._recent.get(subject) or self._alive.get(subject)
            if key is not None:
                self._remember(key)
            return key

    def _keep(self, subject: str, wrapped: bytes | None) -> SubjectKey:
        with self._lock:
            key = self._alive.get(subject)
            if key is None:
                if wrapped is None:
                    plain = self._random(KEY_BYTES)
                    sealed = wrap(self._wrapping, subject, plain, self._random(_NONCE_BYTES))
                    key = SubjectKey(subject, plain, sealed, fresh=True)
                else:
                    key = SubjectKey(subject, unwrap(self._wrapping, subject, wrapped), wrapped, fresh=False)
            self._remember(key)
            return key

    def _remember(self, key: SubjectKey) -> None:
        """With the lock held."""
        self._alive[key.subject] = key
        self._recent[key.subject] = key
        self._recent.move_to_end(key.subject)
        while len(self._recent) > self._capacity:
            self._recent.popitem(last=False)

    async def _read(self, subject: str) -> bytes | None:
        query = select(subject_keys.c.wrapped_key).where(subject_keys.c.subject == subject)
        async with self._database.read() as connection:
            found = (await connection.execute(query)).scalar()
        return None if found is None else bytes(found)
