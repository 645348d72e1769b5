"""Browser sessions and logins under way, in memory: what a cookie is worth. No I/O; time and randomness are handed in.

Of an id only its hash is kept: what can be read out of this process's memory or a core dump opens nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from appliance.identity.principal import Principal

IDLE_S = 30 * 60.0
ABSOLUTE_S = 8 * 3600.0
LOGIN_S = 10 * 60.0
MAX_SESSIONS = 10_000
MAX_SESSIONS_EACH = 20
MAX_LOGINS = 10_000
ID_BYTES = 32
MAX_ID = 64
"""Characters beyond which a cookie is not even hashed."""

Clock = Callable[[], float]
Random = Callable[[int], bytes]
T = TypeVar("T")


class Session(msgspec.Struct):
    """Somebody who is logged in. Times: monotonic seconds."""

    principal: Principal
    issuer: str
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


class _Kept(Generic[T]):
    """Things by the hash of a secret id, the oldest first; of too many the oldest go."""

    def __init__(self, random: Random, most: int) -> None:
        self.things: OrderedDict[bytes, T] = OrderedDict()
        self._random = random
        self._most = most

    def put(self, thing: T) -> str:
        id = token(self._random)
        self.things[digest(id)] = thing
        while len(self.things) > self._most:
            self.things.popitem(last=False)
        return id


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
        self._most_each = most_each
        self._kept: _Kept[Session] = _Kept(random, most)

    def __len__(self) -> int:
        return len(self._kept.things)

    def begin(self, principal: Principal, issuer: str, *, replaces: bytes | None = None) -> tuple[str, Session]:
        """A new session and its id, which is given this once. It takes the place of the one that the browser had."""
        if replaces is not None:
            self._kept.things.pop(replaces, None)
        now = self._clock()
        things = self._kept.things
        for key in [key for key, each in things.items() if not self._lives(each, now)]:
            del things[key]
        own = [key for key, each in things.items() if each.principal.subject == principal.subject]
        for key in own[: max(0, len(own) - self._most_each + 1)]:
            del things[key]
        session = Session(principal, issuer, token(self._random), now, now)
        return self._kept.put(session), session

    def find(self, id: str) -> Session | None:
        """The session of a cookie, which counts as used now; None for one that is unknown or has ended."""
        key = digest(id)
        session = self._kept.things.get(key)
        if session is None:
            return None
        now = self._clock()
        if not self._lives(session, now):
            del self._kept.things[key]
            return None
        session.seen = now
        return session

    def left_s(self, session: Session) -> float:
        """Seconds until a session ends whatever happens."""
        return max(0.0, session.began + self.absolute_s - self._clock())

    def end(self, id: str) -> bool:
        """End a session; False if there was none."""
        return self._kept.things.pop(digest(id), None) is not None

    def end_where(self, ends: Callable[[Session], bool]) -> int:
        """End many; how many."""
        gone = [key for key, session in self._kept.things.items() if ends(session)]
        for key in gone:
            del self._kept.things[key]
        return len(gone)

    def _lives(self, session: Session, now: float) -> bool:
        return now - session.seen < self.idle_s and now - session.began < self.absolute_s


class Logins:
    """Logins under way, each good for one answer within `LOGIN_S`."""

    def __init__(self, clock: Clock, random: Random, *, most: int = MAX_LOGINS) -> None:
        self._clock = clock
        self._random = random
        self._kept: _Kept[Transaction] = _Kept(random, most)

    def begin(self, provider: str, goal: str, *, replaces: bytes | None = None) -> tuple[str, Transaction]:
        """A new login, and the id that ties it to the browser."""
        now = self._clock()
        things = self._kept.things
        while things and now - next(iter(things.values())).began >= LOGIN_S:
            things.popitem(last=False)
        state, nonce, verifier = (token(self._random) for _ in range(3))
        login = Transaction(provider, state, nonce, verifier, goal, now, replaces)
        return self._kept.put(login), login

    def take(self, id: str, state: str) -> Transaction | None:
        """The login that an answer belongs to, once; None for an answer that belongs to none of this browser's."""
        login = self._kept.things.pop(digest(id), None)
        if login is None or self._clock() - login.began >= LOGIN_S:
            return None
        same = hmac.compare_digest(login.state.encode(), state.encode("utf-8", "replace"))
        return login if same else None


def token(random: Random) -> str:
    """256 bits as 43 url-safe characters."""
    return base64.urlsafe_b64encode(random(ID_BYTES)).decode().rstrip("=")


def digest(id: str) -> bytes:
    """What an id is kept as."""
    return hashlib.sha256(id[:MAX_ID].encode("utf-8", "surrogatepass")).digest()
