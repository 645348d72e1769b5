"""Rows to tensors: windows, disguises, targets, and batches of about equal numbers of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from numpy.typing import NDArray

from appliance.guards.features import Batch, Pieces, PieceTokenizer, Window, batch_of
from appliance.guards.views import cleaned
from guard_models.pipeline import compose, disguise
from guard_models.pipeline.rows import TAGS, TOXICITY, Row

WINDOW = 254
"""Word pieces that the model reads at once, without the two special tokens."""
UNKNOWN = -1.0
_TAG = {name: number for number, name in enumerate(TAGS)}


@dataclass(slots=True)
class Example:
    """One window with its targets; UNKNOWN where nothing is known. Arrays are [pieces] or [labels]."""

    pieces: Pieces
    window: Window
    injection: float
    planted: NDArray[np.float32]
    toxicity: NDArray[np.float32]
    tags: NDArray[np.int64]


@dataclass(slots=True)
class Targets:
    """The targets of a batch: [rows], [rows, tokens], [rows, labels], [rows, tokens]."""

    injection: NDArray[np.float32]
    planted: NDArray[np.float32]
    toxicity: NDArray[np.float32]
    tags: NDArray[np.int64]


def disguised(row: Row, random: Random) -> Row:
    """`row`, now and then in another spelling. Positions have to stay, so marked texts change in case only."""
    roll = random.random()
    if compose.has_authors_host(row.text):
        row = compose.changed(row, compose.OtherHosts(random))
    marked = bool(row.entities) or bool(row.planted)
    if marked:
        if roll < 0.10:
            text = row.text.lower() if roll < 0.07 else row.text.upper()
            if len(text) == len(row.text):
                return replace(row, text=text)
        return row
    if row.entities is not None:
        return row
    if roll < 0.14:
        kind = random.choice(disguise.LIGHT)
    elif roll < 0.20 and len(row.text) < 1200:
        kind = random.choice(disguise.HEAVY)
    else:
        return row
    return replace(row, text=kind(row.text, random))


def as_judged(row: Row) -> Row:
    """`row` as its text is judged: cleaned of tricks of writing; read as it stands where personal data is marked."""
    return row if row.entities is not None else compose.changed(row, cleaned)


def example(row: Row, tokenizer: PieceTokenizer, random: Random) -> Example:
    """One window of `row`: if it is longer than a window, a random one that has a planted part if there is any."""
    pieces = tokenizer.pieces(row.text)
    count = len(pieces)
    window = Window(0, count)
    injection = UNKNOWN if row.injection is None else row.injection
    if count > WINDOW:
        last = count - WINDOW
        start = random.randint(0, last)
        if row.planted and random.random() < 0.8:
            begin = next((i for i, (_, end) in enumerate(pieces.offsets) if end > row.planted[0][0]), 0)
            start = min(last, max(0, begin - random.randint(8, WINDOW - 24)))
        elif (injection > 0.5 and row.planted is None) or (row.toxicity and row.toxicity.get("toxic", 0.0) > 0.5):
            # Where it is is not known; most show at once, and what is said of other windows would be a guess.
            start = 0
        window = Window(start, start + WINDOW)
    size = window.end - window.start
    offsets = pieces.offsets[window.start : window.end]
    planted = np.full(size, UNKNOWN, np.float32)
    if row.planted is not None:
        planted[:] = 0.0
        for begin, end in row.planted:
            for i, (left, right) in enumerate(offsets):
                if left < end and right > begin:
                    planted[i] = 1.0
        if row.planted:
            # A window without the planted part is an honest text; one with a scrap of it says nothing.
            inside = int(planted.sum())
            injection = (
                1.0
                if inside >= 6 or inside >= sum(e - b for b, e in row.planted) // 8 > 0
                else 0.0
                if inside == 0
                else UNKNOWN
            )
    toxicity = np.full(len(TOXICITY), UNKNOWN, np.float32)
    if row.toxicity is not None:
        for number, name in enumerate(TOXICITY):
            toxicity[number] = row.toxicity.get(name, UNKNOWN)
    tags = np.full(size, int(UNKNOWN), np.int64)
    if row.entities is not None:
        tags[:] = 0
        for begin, end, kind in row.entities:
            first = True
            for i, (left, right) in enumerate(offsets):
                if left < end and right > begin:
                    tags[i] = _TAG[f"{'B' if first and left >= begin else 'I'}-{kind}"]
                    first = False
        for begin, end in row.ignored:
            for i, (left, right) in enumerate(offsets):
                if left < end and right > begin:
                    tags[i] = int(UNKNOWN)
    return Example(pieces, window, injection, planted, toxicity, tags)


def grouped(examples: Sequence[Example], tokens: int, random: Random) -> list[list[Example]]:
    """Batches of at most `tokens` tokens, padding counted; texts of one batch are of about one length."""
    # Lengths are blurred a little, so that batches differ from epoch to epoch.
    order = sorted(examples, key=lambda e: (e.window.end - e.window.start) * (1 + 0.15 * random.random()))
    batches: list[list[Example]] = []
    current: list[Example] = []
    longest = 0
    for one in order:
        longest_now = max(longest, one.window.end - one.window.start + 2)
        if current and longest_now * (len(current) + 1) > tokens:
            batches.append(current)
            current, longest_now = [], one.window.end - one.window.start + 2
        current.append(one)
        longest = longest_now
    if current:
        batches.append(current)
    random.shuffle(batches)
    return batches


def tensors(tokenizer: PieceTokenizer, group: Sequence[Example]) -> tuple[Batch, Targets]:
    """Model inputs and targets of one batch."""
    inputs = batch_of(tokenizer, [(one.pieces, one.window) for one in group])
    rows, tokens = inputs.ids.shape
    planted = np.full((rows, tokens), UNKNOWN, np.float32)
    tags = np.full((rows, tokens), int(UNKNOWN), np.int64)
    for number, one in enumerate(group):
        planted[number, 1 : len(one.planted) + 1] = one.planted
        tags[number, 1 : len(one.tags) + 1] = one.tags
    return inputs, Targets(
        np.array([one.injection for one in group], np.float32),
        planted,
        np.stack([one.toxicity for one in group]),
        tags,
    )


def examples(
    rows: Sequence[Row], tokenizer: PieceTokenizer, random: Random, *, plain: bool = False
) -> Iterator[Example]:
    """An example of each row; `plain` leaves their spelling alone."""
    for row in rows:
        yield example(as_judged(row if plain else disguised(row, random)), tokenizer, random)
