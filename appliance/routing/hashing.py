"""Who gets what by hash: the same key goes to the same place, for as long as that is there, in every process."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from appliance.dialects.chat import ChatRequest, DeveloperMessage, SystemMessage, UserMessage
from appliance.dialects.completions import CompletionRequest
from appliance.dialects.kinds import Request
from appliance.dialects.wire import encode

PREFIX_CHARACTERS = 8192
"""Of each text: what differs only after that shares most of the work all the same."""
SLACK = 1.25
"""How much more than its share of the load a place may have before others take over."""


def unit(key: bytes, name: str) -> float:
    """A number in (0, 1) that depends on both and on nothing else."""
    hashed = hashlib.blake2b(
        b"%d:%b%b" % (len(key), key, name.encode("utf-8", "surrogatepass")), digest_size=8
    ).digest()
    # 52 bits: with the half, a number that a float holds exactly, and never 1.
    return ((int.from_bytes(hashed, "big") >> 12) + 0.5) * 2.0**-52


def digest(text: str) -> bytes:
    """A key for `unit` from any text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def race(chance: float, weight: float) -> float:
    """When a runner of this weight arrives, for a chance in (0, 1): the first of several is each of them with a
    probability in proportion to its weight. With chances from `unit` this is weighted rendezvous hashing."""
    return -math.log(chance) / weight if weight > 0 else math.inf


def rendezvous(key: bytes, names: Sequence[str], weights: Sequence[float] | None = None) -> list[int]:
    """The places of `names` in the order in which the key prefers them (highest random weight). When a name goes, only
    its keys move, each to the next in its order."""
    arrivals = [race(unit(key, name), 1.0 if weights is None else weights[at]) for at, name in enumerate(names)]
    return sorted(range(len(names)), key=arrivals.__getitem__)


def room(loads: Sequence[int], slack: float = SLACK) -> int:
    """The most that one place may have under way, the next request included."""
    return math.ceil(slack * (sum(loads) + 1) / len(loads))


def bounded(order: Sequence[int], loads: Sequence[int], slack: float = SLACK) -> list[int]:
    """An order of places, those that are full at the end. `loads`: requests under way at each place of the order's
    numbers. There is always room somewhere: the average is below the bound."""
    most = room([loads[at] for at in order], slack) if order else 0
    return [at for at in order if loads[at] < most] + [at for at in order if loads[at] >= most]


def prefix_key(request: Request, partition: str = "") -> bytes:
    """What a conversation begins with: its tools, what the system says before the first question, and that question.
    All its turns have the same. Prefixes are not shared between partitions, so that keys differ too."""
    state = hashlib.blake2b(digest_size=16)
    _feed(state, partition)
    if isinstance(request, ChatRequest):
        if request.tools:
            _feed(state, encode([tool.function.name for tool in request.tools]).decode())
        for message in request.messages:
            if isinstance(message, SystemMessage | DeveloperMessage | UserMessage):
                _feed(state, _text(message.content))
            if isinstance(message, UserMessage):
                break
    else:
        inputs = request.prompts() if isinstance(request, CompletionRequest) else request.inputs()
        first = inputs[0] if inputs else ""
        _feed(state, first if isinstance(first, str) else repr(first[:PREFIX_CHARACTERS]))
    return state.digest()


def _feed(state: hashlib.blake2b, text: str) -> None:
    """Each text with its length, so that no two lists of texts are the same."""
    data = text[:PREFIX_CHARACTERS].encode("utf-8", "surrogatepass")
    state.update(b"%d:" % len(data) + data)


def _text(content: object) -> str:
    """Files count by their beginnings: they are long, and come after the text or before it."""
    if isinstance(content, str):
        return content
    pieces: list[str] = []
    left = PREFIX_CHARACTERS
    for part in content if isinstance(content, list) else ():
        text = getattr(part, "text", None)
        pieces.append(text if isinstance(text, str) else repr(part)[:256])
        left -= len(pieces[-1])
        if left <= 0:
            break
    return "\n".join(pieces)
