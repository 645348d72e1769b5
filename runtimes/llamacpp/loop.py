"""The decode loop: one thread that owns the native context, its slots and every running choice.

Others talk to it only through `submit`, `cancel` and `close`; it answers through the `deliver`
callback, once a step, with everything that became known in that step. A step is either a piece of
prefill or one token for every decoding choice, in turn, so that a long prompt never stalls others.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from runtimes.engine import (
    Delta,
    EngineError,
    Event,
    Finished,
    FinishReason,
    PositionLogprobs,
    Usage,
    Working,
)
from runtimes.llamacpp.machine import Compute
from runtimes.llamacpp.native import Aborted, Native, NativeError, Row
from runtimes.llamacpp.pace import Pace, share_prefill
from runtimes.llamacpp.sampler import Candidates, Sampler, log_probabilities
from runtimes.llamacpp.slots import Placement, Wait, place
from runtimes.llamacpp.text import token_logprob
from runtimes.llamacpp.work import Choice, Counters, Job, Slot

log = logging.getLogger("engine.loop")

Delivery = list[tuple[int, list[Event] | EngineError]]

TELL_S = 1.0
"""How often those who have no token yet hear that the engine is at work, seconds."""
MOST_TURNS = 4096
"""Partitions whose turn is remembered."""
PLACEMENT_SCAN = 64
"""How many waiting jobs to look past because they wait for another's prefill."""


@dataclass
class _Outbox:
    items: dict[int, list[Event]] = field(default_factory=dict)
    failures: dict[int, EngineError] = field(default_factory=dict)


class DecodeLoop:
    """Continuous batching over the slots of one `Native`. `clock` gives monotonic seconds."""

    def __init__(
        self,
        native: Native,
        deliver: Callable[[Delivery], None],
        *,
        clock: Callable[[], float],
        compute: Compute,
        max_prefill: int,
    ) -> None:
        self._native = native
        self._deliver = deliver
        self._clock = clock
        self._compute_with = compute
        self._pace = Pace()
        self._max_prefill = min(max_prefill, native.n_batch)
        self._slots = [
            Slot(i, np.zeros(native.context_length, dtype=np.int32)) for i in range(native.settings.sequences)
        ]
        self._waiting: deque[Choice] = deque()
        self._jobs: dict[int, Job] = {}
        self._candidates = Candidates(native.n_vocab)
        self._out = _Outbox()
        self._uses = 0
        self._turns: dict[str, int] = {}
        """When each partition last got a slot."""
        self._prefill_turn = True
        self._told = 0.0
        self._inbox: deque[Job | int] = deque()
        self._wake = threading.Event()
        self._closing = False
        self.counters = Counters()

    # --- any thread -----------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Hand over a job. Its events follow through `deliver`."""
        self._inbox.append(job)
        self._wake.set()

    def cancel(self, job_id: int) -> None:
        """Forget a job: nothing more is delivered for it. Unknown ids are ignored.

        The step that runs is finished, even if nobody else gains from it (see `Native.give_up` for why).
        """
        self._inbox.append(job_id)
        self._wake.set()

    def close(self) -> None:
        """Make `run` return; the current step is given up."""
        self._closing = True
        self._native.give_up()
        self._wake.set()

    @property
    def busy(self) -> int:
        """Slots in use."""
        return sum(slot.choice is not None for slot in self._slots)

    @property
    def waiting(self) -> int:
        """Choices without a slot."""
        return len(self._waiting) + len(self._inbox)

    @property
    def open_requests(self) -> int:
        """Jobs that are neither finished nor cancelled."""
        return len(self._jobs)

    # --- the thread -----------------------------------------------------------------------------

    def run(self) -> None:
        """Run until `close`. An exception that escapes means that the engine must be restarted."""
        while not self._closing:
            if not self.step():
                self._wake.wait()
                self._wake.clear()

    def step(self) -> bool:
        """One round: take requests, place them, compute once, deliver. False when there is nothing to do."""
        self._take_inbox()
        self._place_waiting()
        prefilling = [slot for slot in self._slots if slot.prefilling]
        decoding = [slot for slot in self._slots if slot.choice is not None and not slot.prefilling]
        if prefilling and (self._prefill_turn or not decoding):
            self._prefill_turn = False
            self._prefill(prefilling, bool(decoding))
        elif decoding:
            self._prefill_turn = True
            self._decode(decoding)
        self._flush()
        return bool(prefilling or decoding or self._inbox)

    def _take_inbox(self) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, int):
                job = self._jobs.get(item)
                if job is not None:
                    self._drop(job)
            else:
                self._accept(item)

    def _accept(self, job: Job) -> None:
        request = job.request
        room = self._native.context_length - len(job.prompt)
        budget = room if request.max_tokens is None else min(room, request.max_tokens)
        choices: list[Choice] = []
        try:
            for index in range(request.n):
                sampler = Sampler(request.sampling, self._candidates, job.seed + index)
                choices.append(Choice(job, index, sampler, job.plan.constraint(), job.plan.parser(index), budget))
        except Exception:
            # One request's parameters must not take the others along.
            log.exception("request %d could not be taken", job.id)
            for choice in choices:
                choice.sampler.close()
            self._out.failures[job.id] = EngineError("the engine failed on this request; its log says why")
            return
        self._jobs[job.id] = job
        job.open = request.n
        self._waiting.extend(choices)

    def _place_waiting(self) -> None:
        skipped: set[int] = set()
        while self._waiting and len(skipped) < PLACEMENT_SCAN and self.busy < len(self._slots):
            choice = self._next_in_line(skipped)
            if choice is None:
                return
            job = choice.job
            decision = place([slot.view() for slot in self._slots], job.prompt, job.request.cache_partition)
            if decision is None:
                return
            if isinstance(decision, Wait):
                skipped.add(job.id)
                continue
            self._waiting.remove(choice)
            self._occupy(choice, decision)

    def _next_in_line(self, skipped: set[int]) -> Choice | None:
        """The oldest waiting choice of those whose partition and job hold the fewest slots; partitions take turns.

        So neither a caller with many requests nor a request with many choices keeps the others out.
        """
        holders = [slot.choice.job for slot in self._slots if slot.choice is not None]
        by_job = Counter(job.id for job in holders)
        by_partition = Counter(job.request.cache_partition for job in holders)

        def rank(choice: Choice) -> tuple[int, int, int]:
            partition = choice.job.request.cache_partition
            return by_partition[partition], self._turns.get(partition, 0), by_job[choice.job.id]

        return min((c for c in self._waiting if c.job.id not in skipped), key=rank, default=None)

    def _occupy(self, choice: Choice, placement: Placement) -> None:
        job = choice.job
        slot = self._slots[placement.slot]
        keep = placement.keep
        try:
            if placement.copy_from is not None:
                source = self._slots[placement.copy_from]
                self._native.copy(source.index, slot.index)
                slot.buffer[: source.length] = source.held
                slot.length = source.length
            if keep < slot.length:
                self._native.trim(slot.index, keep)
        except NativeError as error:
            log.warning("reuse failed, computing the whole prompt: %s", error.message)
            self._native.trim(slot.index, 0)
            keep = 0
        slot.length = keep
        slot.choice = choice
        slot.partition = job.request.cache_partition
        self._uses += 1
        slot.last_used = self._uses
        if len(self._turns) > MOST_TURNS:
            self._turns.clear()
        self._turns[slot.partition] = self._uses
        self.counters.reused += keep
        if not job.placed:
            job.placed = True
            job.cached_tokens = keep

    # --- computing ------------------------------------------------------------------------------

    def _prefill(self, slots: list[Slot], decoding: bool) -> None:
        slots.sort(key=lambda slot: slot.last_used)  # oldest first
        todo = sum(len(_choice(s).job.prompt) - s.length for s in slots)
        budget = self._pace.prefill_budget(todo, decoding=decoding, most=self._max_prefill)
        rows: list[Row] = []
        parts: list[tuple[Slot, int]] = []
        counts = share_prefill([len(_choice(s).job.prompt) - s.length for s in slots], budget)
        for slot, count in zip(slots, counts, strict=True):
            if not count:
                continue
            job = _choice(slot).job
            self._start(job)
            prompt = job.prompt
            end = slot.length + count
            last = len(prompt) - 1
            rows.extend((int(prompt[p]), p, slot.index, p == last) for p in range(slot.length, end))
            parts.append((slot, count))
        if not self._compute(rows, [slot for slot, _ in parts], prefill=True):
            return
        self.counters.prefilled += len(rows)
        row = 0
        for slot, count in parts:
            slot.buffer[slot.length : slot.length + count] = [token for token, *_ in rows[row : row + count]]
            slot.length += count
            row += count
            if rows[row - 1][3]:
                self._advance(slot, row - 1)

    def _start(self, job: Job) -> None:
        if job.started is None:
            job.started = self._clock()
            for event in job.first:
                self._emit(job, event)

    def _tell(self, now: float) -> None:
        if now - self._told < TELL_S:
            return
        self._told = now
        jobs = {choice.job for choice in self._waiting}
        jobs |= {_choice(slot).job for slot in self._slots if slot.prefilling}
        for job in jobs:
            if job.started is not None:
                self._emit(job, Working())

    def _decode(self, slots: list[Slot]) -> None:
        rows: list[Row] = [(_choice(s).next_token, s.length, s.index, True) for s in slots]
        if not self._compute(rows, slots, prefill=False):
            return
        self.counters.steps += 1
        for row, slot in enumerate(slots):
            slot.buffer[slot.length] = rows[row][0]
            slot.length += 1
            self._advance(slot, row)

    def _compute(self, rows: list[Row], slots: list[Slot], *, prefill: bool) -> bool:
        """Run one batch; False when the loop is closing or its requests were failed."""
        before = self._clock()
        try:
            self._native.set_threads(self._compute_with.threads)
            self._compute_with.began()
            self._native.decode(rows)
        except Aborted:
            return False
        except NativeError as error:
            log.error("a batch of %d tokens failed: %s", len(rows), error.message)
            for job in {_choice(slot).job for slot in slots}:
                self._fail(job, error)
            for slot in slots:
                self._native.trim(slot.index, 0)
                slot.length = 0
            return False
        now = self._clock()
        self._compute_with.ended(now - before, now)
        self._pace.measured(len(rows), now - before, prefill=prefill)
        self._tell(now)
        return True

    def _advance(self, slot: Slot, row: int) -> None:
        """Choose the next token of a slot's choice from the logits of `row`, and end it if that ends it."""
        choice = slot.choice
        if choice is None:  # another choice of the same request failed in this very step
            return
        try:
            reason = self._choose(choice, self._native.logits(row))
            if reason is not None:
                self._finish(slot, reason)
        except EngineError as error:
            self._fail(choice.job, error)
        except Exception:
            # One choice's text processing must not take the others along.
            log.exception("choice %d of request %d failed", choice.index, choice.job.id)
            self._fail(choice.job, EngineError("the engine failed on this request; its log says why"))

    def _choose(self, choice: Choice, logits: NDArray[np.float32]) -> FinishReason | None:
        if not choice.budget:
            return "length"
        token = choice.sampler.choose(logits)
        constraint = choice.constraint
        if constraint is not None:
            if not constraint.allows(token):
                token = choice.sampler.choose(logits, constraint.mask())
            constraint.accept(token)
        choice.sampler.accept(token)
        choice.generated += 1
        choice.job.completion_tokens += 1
        self.counters.generated += 1
        if token in self._native.eog:
            return "stop"
        piece = self._native.piece(token)
        wanted = choice.job.request.logprobs
        entry = None if wanted is None else self._logprobs(token, logits, wanted)
        self._emit_delta(choice, choice.parser.feed(token, piece, entry))
        if choice.parser.stopped or (constraint is not None and constraint.is_done()):
            return "stop"
        if choice.generated >= choice.budget:
            return "length"
        choice.next_token = token
        return None

    def _logprobs(self, token: int, logits: NDArray[np.float32], top: int) -> PositionLogprobs:
        values = log_probabilities(logits)
        best: Iterable[int] = ()
        if top:
            best = np.argpartition(values, -top)[-top:]
            best = sorted((int(t) for t in best), key=lambda t: -values[t])

        def entry(t: int) -> bytes:
            return self._native.piece(t) or self._native.token_text(t).encode()

        return PositionLogprobs(
            token_logprob(entry(token), float(values[token])),
            [token_logprob(entry(t), float(values[t])) for t in best],
        )

    # --- endings --------------------------------------------------------------------------------

    def _finish(self, slot: Slot, reason: FinishReason) -> None:
        choice = _choice(slot)
        delta, reason = choice.parser.finish(reason)
        self._emit_delta(choice, delta)
        self._emit(choice.job, Finished(reason, choice.index))
        self._release(slot)
        job = choice.job
        job.open -= 1
        if job.open == 0:
            del self._jobs[job.id]
            started = job.arrived if job.started is None else job.started
            self._emit(
                job,
                Usage(len(job.prompt), job.completion_tokens, job.cached_tokens, queue_s=started - job.arrived),
            )

    def _release(self, slot: Slot) -> None:
        choice = _choice(slot)
        choice.sampler.close()
        slot.choice = None
        self._uses += 1
        slot.last_used = self._uses

    def _drop(self, job: Job) -> None:
        """Take a job out wherever it is; what its slots hold stays usable as a prefix."""
        job.gone = True
        self._jobs.pop(job.id, None)
        self._out.items.pop(job.id, None)
        for slot in self._slots:
            if slot.choice is not None and slot.choice.job is job:
                self._release(slot)
        kept = deque(c for c in self._waiting if c.job is not job)
        for choice in self._waiting:
            if choice.job is job:
                choice.sampler.close()
        self._waiting = kept

    def _fail(self, job: Job, error: EngineError) -> None:
        if not job.gone:
            self._drop(job)
            self._out.failures[job.id] = error

    def _emit_delta(self, choice: Choice, delta: Delta | None) -> None:
        if delta is not None:
            self._emit(choice.job, delta)

    def _emit(self, job: Job, event: Event) -> None:
        self._out.items.setdefault(job.id, []).append(event)

    def _flush(self) -> None:
        out, self._out = self._out, _Outbox()
        delivery: Delivery = [*out.items.items(), *out.failures.items()]
        if delivery:
            self._deliver(delivery)


def _choice(slot: Slot) -> Choice:
    if slot.choice is None:
        raise EngineError(f"slot {slot.index} is not in use")
    return slot.choice
