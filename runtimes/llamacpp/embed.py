"""Embeddings: packs texts of several requests into one batch, one native sequence each.

An encoder (BERT) keeps nothing of what it has read, so many sequences cost nothing. A decoder that embeds (Qwen3)
reserves keys and values for a whole context in each, so it gets as few as `KV_BUDGET` holds.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, repeat, zip_longest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtimes.engine import Embeddings, EngineError
from runtimes.llamacpp.native import Aborted, Native, NativeError, Row

log = logging.getLogger("engine.embed")

MOST_SEQUENCES = 64
KV_BUDGET = 1 << 30
"""Bytes of keys and values over all sequences; one whole context is reserved even if it alone takes more."""


@dataclass(eq=False)
class EmbedJob:
    """One embed request: token ids of each input, none longer than the context."""

    id: int
    inputs: list[list[int]]
    vectors: list[bytes] = field(default_factory=list)


def sequences_for(context: int, kv_bytes_per_token: int) -> int:
    """How many texts of up to `context` tokens are read at once."""
    if not kv_bytes_per_token:
        return MOST_SEQUENCES
    return max(1, min(MOST_SEQUENCES, KV_BUDGET // (context * kv_bytes_per_token)))


class Frame(NamedTuple):
    """The special tokens that a vocabulary puts around each text, such as [CLS] and [SEP]."""

    before: list[int]
    after: list[int]

    def around(self, tokens: list[int]) -> list[int]:
        """The tokens of a text with those of the frame that they lack."""
        before = [] if tokens[: len(self.before)] == self.before else self.before
        after = [] if tokens[len(tokens) - len(self.after) :] == self.after else self.after
        return [*before, *tokens, *after]


def frame(plain: list[int], whole: list[int]) -> Frame:
    """What stands around the tokens of some text in `whole`, its tokens as the model is to read them."""
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return Frame(whole[:start], whole[start + len(plain) :])
    return Frame([], [])


def pack(lengths: list[int], tokens: int, sequences: int) -> int:
    """How many of the next inputs fit one batch of `tokens` tokens and `sequences` texts; at least one."""
    total = count = 0
    for length in lengths[:sequences]:
        total += length
        if count and total > tokens:
            break
        count += 1
    return count


def in_turn(jobs: Iterable[EmbedJob]) -> Iterator[tuple[EmbedJob, int]]:
    """The inputs that are still to be read, one of each job in turn: a long list must not hold up a short one."""
    places = [zip(repeat(job), range(len(job.vectors), len(job.inputs))) for job in jobs]
    return (item for row in zip_longest(*places) for item in row if item is not None)


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector at length 1; a zero vector stays zero."""
    norm = float(np.linalg.norm(vector))
    return vector / np.float32(norm) if norm > 0 else vector


class EmbedLoop:
    """Owns a `Native` loaded with embeddings; same outside as `DecodeLoop`."""

    def __init__(self, native: Native, deliver: Callable[[int, Embeddings | EngineError], None]) -> None:
        self._native = native
        self._deliver = deliver
        self._inbox: deque[EmbedJob | int] = deque()
        self._jobs: dict[int, EmbedJob] = {}
        self._wake = threading.Event()
        self._closing = False
        self.tokens = 0
        self.steps = 0

    def submit(self, job: EmbedJob) -> None:
        """Hand over a job; `deliver` is called once with its result."""
        self._inbox.append(job)
        self._wake.set()

    def cancel(self, job_id: int) -> None:
        """Forget a job."""
        self._inbox.append(job_id)
        self._wake.set()

    def close(self) -> None:
        """Make `run` return; the current batch is given up."""
        self._closing = True
        self._native.give_up()
        self._wake.set()

    @property
    def open_requests(self) -> int:
        """Jobs that are neither finished nor cancelled."""
        return len(self._jobs) + len(self._inbox)

    def run(self) -> None:
        """Run until `close`."""
        while not self._closing:
            if not self.step():
                self._wake.wait()
                self._wake.clear()

    def step(self) -> bool:
        """Compute one batch over the oldest jobs; False when there is nothing to do."""
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, int):
                self._jobs.pop(item, None)
            else:
                self._jobs[item.id] = item
        limit = self._native.settings.sequences
        todo = list(islice(in_turn(self._jobs.values()), limit))
        if not todo:
            return False
        batch = todo[: pack([len(job.inputs[p]) for job, p in todo], self._native.n_batch, limit)]
        rows: list[Row] = [
            (token, position, sequence, True)
            for sequence, (job, index) in enumerate(batch)
            for position, token in enumerate(job.inputs[index])
        ]
        try:
            self._native.decode(rows)
        except Aborted:
            return False
        except NativeError as error:
            log.error("a batch of %d tokens failed: %s", len(rows), error.message)
            for job in {job for job, _ in batch}:
                del self._jobs[job.id]
                self._deliver(job.id, error)
            return True
        for sequence, (job, _) in enumerate(batch):
            job.vectors.append(unit(self._native.embedding(sequence)).astype("<f4").tobytes())
            self._native.trim(sequence, 0)
        self.steps += 1
        self.tokens += len(rows)
        for job in {job for job, _ in batch}:
            if len(job.vectors) == len(job.inputs):
                del self._jobs[job.id]
                tokens = sum(map(len, job.inputs))
                self._deliver(job.id, Embeddings(job.vectors, self._native.n_embd, tokens))
        return True
