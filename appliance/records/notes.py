"""Checkpoints as signed notes: the text forms and the signatures. Pure.

The form is C2SP's tlog-checkpoint in a C2SP signed note: three lines – whose ledger it is, the number of the newest
record, its hash in base64 – then an empty line and the signature's line. The hash is the chain's, not a Merkle tree's.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ED25519 = b"\x01"
"""The signature's kind in a key's text and fingerprint."""

_NOTE = re.compile(r"(?s)(?P<text>.+?\n)\n(?P<signatures>(?:— [^\n]+\n)+)\Z")
_BODY = re.compile(r"(?P<origin>[^\n]+)\n(?P<seq>0|[1-9][0-9]{0,18})\n(?P<hash>[A-Za-z0-9+/]{43}=)\n")
_KEY = re.compile(r"(?P<name>[^\s+]+)\+(?P<id>[0-9a-f]{8})\+(?P<key>[A-Za-z0-9+/]{44})")


class NoteError(ValueError):
    """A note or a key's text is not what it should be; the message says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """That the ledger's record `seq` has the chain's hash `hash` (32 bytes)."""

    seq: int
    hash: bytes


class PublicKey:
    """What checkpoints are verified with. `name` is also the first line (the origin) of each."""

    def __init__(self, name: str, raw: bytes) -> None:
        self.name = name
        self.id = key_id(name, raw)
        self._raw = raw
        self._key = Ed25519PublicKey.from_public_bytes(raw)

    @property
    def text(self) -> str:
        """One line: NAME+ID+KEY, as other programs for signed notes take it."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(ED25519 + self._raw).decode()}"

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """The key of such a line. Raises NoteError."""
        found = _KEY.fullmatch(text.strip())
        if found is None:
            raise NoteError("a public key is one line NAME+ID+KEY; `outpost ledger key` prints it")
        raw = _base64(found["key"])
        if raw[:1] != ED25519 or len(raw) != 33:
            raise NoteError("this is not an ed25519 key")
        key = cls(found["name"], raw[1:])
        if key.id.hex() != found["id"]:
            raise NoteError("the public key's id does not belong to its key: the line was changed")
        return key

    def verify(self, note: str) -> str:
        """The signed text of a note. Raises NoteError unless this key signed it."""
        found = _NOTE.fullmatch(note)
        if found is None:
            raise NoteError("it has not the form of a signed note")
        signed = False
        for line in found["signatures"].splitlines():
            name, _, encoded = line.removeprefix("— ").rpartition(" ")
            raw = _base64(encoded)
            if name != self.name or raw[:4] != self.id:
                continue
            try:
                self._key.verify(raw[4:], found["text"].encode())
            except InvalidSignature:
                raise NoteError("its signature is wrong") from None
            signed = True
        if not signed:
            raise NoteError(f"{self.name} has not signed it")
        return found["text"]

    def checkpoint(self, note: str) -> Checkpoint:
        """What a checkpoint of this ledger says. Raises NoteError."""
        text = self.verify(note)
        found = _BODY.match(text)
        # Further lines are allowed by the form, and signed as well.
        if found is None or found["origin"] != self.name:
            raise NoteError(f"it is not a checkpoint of {self.name}")
        return Checkpoint(int(found["seq"]), _base64(found["hash"]))


class Signer:
    """The ledger's own key; `seed` is 32 secret bytes."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        raw = self._key.public_key().public_bytes_raw()
        self.public = PublicKey(f"outpost-ledger/{hashlib.sha256(raw).hexdigest()[:16]}", raw)

    def sign(self, checkpoint: Checkpoint) -> str:
        """The checkpoint as a signed note."""
        text = f"{self.public.name}\n{checkpoint.seq}\n{base64.b64encode(checkpoint.hash).decode()}\n"
        signature = self.public.id + self._key.sign(text.encode())
        return f"{text}\n— {self.public.name} {base64.b64encode(signature).decode()}\n"


def key_id(name: str, raw: bytes) -> bytes:
    """The four bytes that name a key in a signature."""
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + raw).digest()[:4]


def claimed_seq(note: str) -> int | None:
    """The number that a note speaks of, whoever wrote it; None if it has not the form."""
    found = _BODY.match(note)
    return int(found["seq"]) if found else None


def split(lines: Iterator[str]) -> Iterator[str]:
    """The notes of a file: each ends with its signatures; an empty line may follow. What ends in the middle comes last,
    as it is."""
    note: list[str] = []
    signed = False
    for line in lines:
        signature = line.startswith("— ")
        if signed and not signature:
            yield "".join(note)
            note = []
            if line == "\n":
                signed = False
                continue
        note.append(line)
        signed = signature and line.endswith("\n")
    if note:
        yield "".join(note)


def _base64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise NoteError("it holds something that is not base64") from error
    if base64.b64encode(raw).decode() != text:
        # Some bits of the last character mean nothing; two texts for one signature would be one too many.
        raise NoteError("it holds base64 with stray bits")
    return raw
