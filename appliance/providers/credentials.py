"""Which of a provider's keys a request goes out with, and how often the provider may be asked.

`Keys` is what one provider has; each of its targets has `Credentials` of its own, since providers limit each model
apart: a key that rests for one model serves another. A key that is not accepted rests for all of them. Where there is
but one key it never rests: whether its target is asked at all, breakers decide.

Decisions are pure functions; the owners take time and randomness as arguments to their constructors.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from multidict import CIMultiDict

from appliance.errors import BadRequest, OutpostError, RateLimited, TargetLimited, TargetUsedUp
from appliance.redact import MIN_SECRET

logger = logging.getLogger(__name__)

FIRST_REST_S = 1.0
LONGEST_REST_S = 60.0
"""The usual setting."""
REFUSED_REST_S = 600.0
"""For a key that is not accepted, or whose account is used up."""
MINUTE_S = 60.0


class Key:
    """A secret with its name in the settings. Neither text nor log ever holds `text`."""

    __slots__ = ("name", "out_until", "text", "weight")

    def __init__(self, name: str, text: str | None, weight: float = 1.0) -> None:
        """`text`: None where nobody asks for a key, or where the signer has the secrets."""
        self.name = name
        self.text = text
        self.weight = weight
        self.out_until = 0.0
        """Not accepted: for no target before this moment."""

    def __repr__(self) -> str:
        return f"Key({self.name!r})"


class Credential:
    """A key as one target uses it."""

    __slots__ = ("fields", "headers", "key", "rest_s", "rests_until", "secret")

    def __init__(self, key: Key) -> None:
        self.key = key
        # A short one ("none", "EMPTY") is a word that answers have for other reasons.
        self.secret = key.text.encode() if key.text and len(key.text) >= MIN_SECRET else b""
        """What must not come back in an answer; b"" where there is nothing to look for."""
        self.headers: CIMultiDict[str] | None = None
        """All headers of a request with this key; whoever sends it makes them once and keeps them here."""
        self.fields = b""
        """The same as they are sent."""
        self.rest_s = 0.0
        """How long it rested last, by our own reckoning."""
        self.rests_until = 0.0

    @property
    def text(self) -> str | None:
        return self.key.text

    @property
    def name(self) -> str:
        return self.key.name

    def free_at(self) -> float:
        return max(self.rests_until, self.key.out_until)

    def __repr__(self) -> str:
        return f"Credential({self.name!r})"


def choose(credentials: Sequence[Credential], share: float, now: float) -> Credential | None:
    """One of those that do not rest, by weight. `share`: a random number in [0, 1). None: all rest."""
    free = [each for each in credentials if each.free_at() <= now]
    if not free:
        return None
    at = share * sum(each.key.weight for each in free)
    for each in free:
        at -= each.key.weight
        if at < 0:
            return each
    return free[-1]


def next_rest_s(last_s: float, retry_after_s: float | None, longest_s: float) -> tuple[float, float]:
    """(how long a key rests after a rate limit, what to hand in as `last_s` the next time). Without a word of the
    provider's it doubles from a second on."""
    if retry_after_s is not None:
        return retry_after_s, last_s
    grown = min(max(last_s * 2, FIRST_REST_S), longest_s)
    return grown, grown


class Pace:
    """At most so many requests in any minute."""

    __slots__ = ("_most", "_sent")

    def __init__(self, most: int) -> None:
        self._most = most
        self._sent: deque[float] = deque(maxlen=most)

    def take(self, now: float) -> float:
        """Count a request; 0.0, or how long to wait, in which case it does not count."""
        if len(self._sent) == self._most and (wait_s := self._sent[0] + MINUTE_S - now) > 0:
            return wait_s
        self._sent.append(now)
        return 0.0

    def spare(self, now: float) -> bool:
        """Whether half of what is allowed is left."""
        return 2 * sum(at > now - MINUTE_S for at in self._sent) < self._most


class Behind:
    """What others leave of a pace: half of it always stays theirs."""

    __slots__ = ("_pace",)

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def take(self, now: float) -> float:
        """As `Pace.take`."""
        return self._pace.take(now) if self._pace.spare(now) else 1.0


class Keys:
    """The keys of one provider, and how often it may be asked."""

    def __init__(
        self,
        provider: str,
        keys: Iterable[Key] = (),
        *,
        longest_rest_s: float = LONGEST_REST_S,
        requests_per_minute: int | None = None,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `keys` requests go out without one."""
        self.provider = provider
        self.all = tuple(keys) or (Key("none", None),)
        self.longest_rest_s = longest_rest_s
        self.draw = draw
        self.clock = clock
        self.pace: Pace | Behind | None = Pace(requests_per_minute) if requests_per_minute is not None else None

    def aside(self) -> Keys:
        """The same keys for requests that must not be anybody's trouble: how they fare says nothing about the keys, and
        most of what may be asked in a minute is left to others."""
        keys = [Key(each.name, each.text, each.weight) for each in self.all]
        twin = Keys(self.provider, keys, longest_rest_s=self.longest_rest_s, draw=self.draw, clock=self.clock)
        twin.pace = Behind(self.pace) if isinstance(self.pace, Pace) else self.pace
        return twin

    def credentials(self, target: str) -> Credentials:
        """For one target, whose name is for messages."""
        return Credentials(target, self)


class Credentials:
    """The keys of one provider as one target uses them."""

    def __init__(self, target: str, keys: Keys) -> None:
        self._target = target
        self._keys = keys
        self.all = tuple(Credential(key) for key in keys.all)
        self._alone = len(self.all) == 1

    def take(self) -> Credential:
        """The credential for one request. Raises TargetLimited with the time after which there is one again."""
        keys = self._keys
        now = keys.clock()
        chosen = self.all[0] if self._alone else choose(self.all, keys.draw(), now)
        if chosen is None:
            raise TargetLimited(
                f"{self._target}: every key for it rests after a refusal; try again later.",
                retry_after_s=max(self._soonest() - now, 0.0),
            )
        if keys.pace is not None and (wait_s := keys.pace.take(now)) > 0:
            raise TargetLimited(
                f"{self._target} is asked as often in a minute as the operator allows; try again later.",
                retry_after_s=wait_s,
            )
        return chosen

    def succeeded(self, credential: Credential) -> None:
        """An answer has begun: the next rest is a short one again."""
        credential.rest_s = 0.0

    def failed(self, credential: Credential, status: int, error: OutpostError) -> None:
        """Let the key rest, if it is the key that was refused. Where another one is free, `error` says that the target
        may be asked again at once (`retry_after_s` is 0); where all rest, when the first of them is free."""
        key, keys = credential.key, self._keys
        now = keys.clock()
        if isinstance(error, BadRequest):
            return  # what was asked is at fault, whatever the status: OpenRouter's moderation has 403
        if isinstance(error, TargetUsedUp) or status in (401, 403) or error.code == "upstream_credentials":
            if key.out_until <= now:
                why = "has no quota left" if isinstance(error, TargetUsedUp) else "was not accepted"
                logger.warning("the key %s of provider %s %s (%s)", key.name, keys.provider, why, self._target)
            key.out_until = now + REFUSED_REST_S
        elif isinstance(error, RateLimited):
            rest_s, credential.rest_s = next_rest_s(credential.rest_s, error.retry_after_s, keys.longest_rest_s)
            credential.rests_until = now + rest_s
        else:
            return
        if not self._alone:
            error.retry_after_s = max(self._soonest() - now, 0.0)
            error.at_once = error.retry_after_s == 0.0

    def another_is_free(self) -> bool:
        """Whether a request that has been refused for its key may go out with another one at once."""
        now = self._keys.clock()
        return not self._alone and any(each.free_at() <= now for each in self.all)

    def _soonest(self) -> float:
        return min(each.free_at() for each in self.all)
