"""Browser sessions and logins under way: what a cookie is worth. No I/O; time and randomness are handed in.

Sessions are kept in memory. Of an id only its hash is kept: what can be read out of this process's memory or a core
dump opens no session. A login under way is kept by its browser, in a sealed cookie: whoever asks for logins, without
being anybody, must neither fill memory nor push out the login of somebody else.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.identity.principal import Principal

IDLE_S = 30 * 60.0
ABSOLUTE_S = 8 * 3600.0
LOGIN_S = 10 * 60.0
MAX_SESSIONS = 10_000
MAX_SESSIONS_EACH = 20
MAX_USED = 10_000
"""Answered logins that are remembered. With more within LOGIN_S the oldest are forgotten: then only the provider, which
takes each code once, keeps such a login from being answered again."""
MAX_COOKIE = 4096
"""Characters beyond which a login's cookie is not even opened. One with the longest path takes half of that."""
ID_BYTES = 32
MAX_ID = 64
"""Characters beyond which a cookie is not even hashed."""

Clock = Callable[[], float]
Random = Callable[[int], bytes]
_NONCE_BYTES = 12
_PURPOSE = b"outpost login under way v1"


class Session(msgspec.Struct):
    """Somebody who is logged in. Times: monotonic seconds."""

    principal: Principal
    issuer: str
    name: str
    """What the provider calls them; for nobody's eyes but theirs."""
    csrf: str
    """What a request that changes something must send along in a header."""
    began: float
    seen: float


class Transaction(msgspec.Struct, frozen=True):
    """A login that has been sent to a provider and has not come back yet."""

    provider: str
    state: str
    nonce: str
    verifier: str
    goal: str
    """The path to go to afterwards."""
    began: float
    replaces: bytes | None = None
    """The session that the browser had before."""


class Sessions:
    """Who is logged in. A session ends when it is not used for `idle_s`, and `absolute_s` after it began."""

    def __init__(
        self,
        clock: Clock,
        random: Random,
        *,
        idle_s: float = IDLE_S,
        absolute_s: float = ABSOLUTE_S,
        most: int = MAX_SESSIONS,
        most_each: int = MAX_SESSIONS_EACH,
    ) -> None:
        self.idle_s = idle_s
        self.absolute_s = absolute_s
        self._clock = clock
        self._random = random
        self._most = most
        self._most_each = most_each
        self._kept: OrderedDict[bytes, Session] = OrderedDict()
        """By the hash of the secret id, the oldest first; of too many the oldest go."""

    def __len__(self) -> int:
        return len(self._kept)

    def begin(
        self, principal: Principal, issuer: str, name: str, *, replaces: bytes | None = None
    ) -> tuple[str, Session]:
        """A new session and its id, which is given this once. It takes the place of the one that the browser had."""
        if replaces is not None:
            self._kept.pop(replaces, None)
        now = self._clock()
        kept = self._kept
        for key in [key for key, each in kept.items() if not self._lives(each, now)]:
            del kept[key]
        own = [key for key, each in kept.items() if each.principal.subject == principal.subject]
        for key in own[: max(0, len(own) - self._most_each + 1)]:
            del kept[key]
        session = Session(principal, issuer, name, token(self._random), now, now)
        id = token(self._random)
        kept[digest(id)] = session
        while len(kept) > self._most:
            kept.popitem(last=False)
        return id, session

    def find(self, id: str) -> Session | None:
        """The session of a cookie, which counts as used now; None for one that is unknown or has ended."""
        key = digest(id)
        session = self._kept.get(key)
        if session is None:
            return None
        now = self._clock()
        if not self._lives(session, now):
            del self._kept[key]
            return None
        session.seen = now
        return session

    def left_s(self, session: Session) -> float:
        """Seconds until a session ends whatever happens."""
        return max(0.0, session.began + self.absolute_s - self._clock())

    def end(self, id: str) -> bool:
        """End a session; False if there was none."""
        return self._kept.pop(digest(id), None) is not None

    def end_where(self, ends: Callable[[Session], bool]) -> int:
        """End many; how many."""
        gone = [key for key, session in self._kept.items() if ends(session)]
        for key in gone:
            del self._kept[key]
        return len(gone)

    def _lives(self, session: Session, now: float) -> bool:
        return now - session.seen < self.idle_s and now - session.began < self.absolute_s


class Logins:
    """Logins under way, each good for one answer within `LOGIN_S`. They are in the cookies of their browsers, under a
    key that this process made: a restart ends them, as it ends sessions, so that none is answered on both sides of one.

    What is kept here is which logins were answered, at most `most` of them.
    """

    def __init__(self, clock: Clock, random: Random, *, most: int = MAX_USED) -> None:
        self._clock = clock
        self._random = random
        self._most = most
        self._cipher = AESGCM(random(32))
        # Counted: under one key random nonces would meet after some billions, which anybody may ask for.
        self._sealed = 0
        self._used: OrderedDict[bytes, float] = OrderedDict()
        """When a login was answered, by the hash of its state; the oldest first."""

    def __len__(self) -> int:
        """How many things are kept in memory."""
        return len(self._used)

    def begin(self, provider: str, goal: str, *, replaces: bytes | None = None) -> tuple[str, Transaction]:
        """A new login, and the cookie that has it. goal: at most 2048 characters."""
        state, nonce, verifier = (token(self._random) for _ in range(3))
        login = Transaction(provider, state, nonce, verifier, goal, self._clock(), replaces)
        self._sealed += 1
        number = self._sealed.to_bytes(_NONCE_BYTES, "big")
        sealed = number + self._cipher.encrypt(number, msgspec.msgpack.encode(login), _PURPOSE)
        return _text(sealed), login

    def take(self, cookie: str, state: str) -> Transaction | None:
        """The login that an answer belongs to, once; None for an answer that belongs to none of this browser's."""
        login, now = self._open(cookie), self._clock()
        if login is None or now - login.began >= LOGIN_S:
            return None
        if not hmac.compare_digest(login.state.encode(), state.encode("utf-8", "replace")):
            return None
        while self._used and now - next(iter(self._used.values())) >= LOGIN_S:
            self._used.popitem(last=False)
        key = digest(login.state)
        if key in self._used:
            return None
        self._used[key] = now
        while len(self._used) > self._most:
            self._used.popitem(last=False)
        return login

    def _open(self, cookie: str) -> Transaction | None:
        if len(cookie) > MAX_COOKIE:
            return None
        try:
            sealed = base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
            plain = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _PURPOSE)
        except (ValueError, InvalidTag):
            return None
        return msgspec.msgpack.decode(plain, type=Transaction)


def token(random: Random) -> str:
    """256 bits as 43 url-safe characters."""
    return _text(random(ID_BYTES))


def digest(id: str) -> bytes:
    """What an id is kept as."""
    return hashlib.sha256(id[:MAX_ID].encode("utf-8", "surrogatepass")).digest()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
