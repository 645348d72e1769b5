"""Where a new prompt goes: pure decisions over what the slots hold.

A slot is one sequence of the native context. After an answer its tokens stay in memory, so that the
next prompt that begins the same way computes only what is new. Because rows do not influence each
other (see native.py), reuse changes nothing but the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]

COPY_GAIN = 32
"""Copy another slot's state only if it saves at least this many tokens of prefill ..."""
COPY_RATIO = 100
"""... and at least one in this many of the tokens that must be copied (a copied token costs ~1 % of a computed one)."""


@dataclass(frozen=True)
class SlotView:
    """What a decision needs to know of a slot."""

    index: int
    free: bool
    held: Tokens
    """Tokens whose state is in memory now."""
    coming: Tokens
    """Tokens that it will hold when its prompt is computed (equal to `held` when not prefilling)."""
    partition: str
    last_used: int
    """A counter, not a time: smaller is older."""


@dataclass(frozen=True)
class Placement:
    """Put the prompt into `slot`, of which `keep` tokens are computed already.

    With `copy_from`, the state of that slot is copied into `slot` first and then cut to `keep`.
    """

    slot: int
    keep: int
    copy_from: int | None = None


@dataclass(frozen=True)
class Wait:
    """Slot `behind` is computing the same beginning: waiting for it is cheaper than doing it twice."""

    behind: int


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Length of the longest common beginning of two token arrays."""
    n = min(len(a), len(b))
    if n == 0:
        return 0
    differing = a[:n] != b[:n]
    first = int(differing.argmax())
    return first if differing[first] else n


def place(slots: Sequence[SlotView], prompt: Tokens, partition: str) -> Placement | Wait | None:
    """Choose a slot for a prompt; None when none is free.

    At least the last token of the prompt is always computed, because its logits are needed.
    """
    free = [s for s in slots if s.free]
    if not free:
        return None
    limit = len(prompt) - 1

    def shared(slot: SlotView, tokens: Tokens) -> int:
        return min(common_prefix(tokens, prompt), limit) if slot.partition == partition else 0

    target = _target(free, {s.index: shared(s, s.held) for s in free})
    keep = shared(target, target.held)
    donor, gained = None, keep
    for slot in slots:
        if slot.index == target.index:
            continue
        have = shared(slot, slot.held)
        if not slot.free and shared(slot, slot.coming) >= max(keep, have) + COPY_GAIN:
            return Wait(slot.index)
        if have > gained and have - keep >= max(COPY_GAIN, len(slot.held) // COPY_RATIO):
            donor, gained = slot.index, have
    return Placement(target.index, gained, donor)


def _target(free: Sequence[SlotView], match: dict[int, int]) -> SlotView:
    """The slot that the prompt overwrites.

    A slot of which the prompt continues at least half is the same conversation; otherwise the one
    whose content is worth least (empty, then oldest), so that a short common beginning does not cost
    another conversation its memory.
    """
    same = [s for s in free if match[s.index] and 2 * match[s.index] >= len(s.held)]
    if same:
        return max(same, key=lambda s: (match[s.index], -s.last_used))
    return min(free, key=lambda s: (len(s.held) > 0, s.last_used, s.index))
