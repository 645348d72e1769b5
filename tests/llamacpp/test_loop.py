"""The decode loop over a made-up native library that holds it to the rules.

`FakeNative` keeps what each sequence holds, refuses any row that does not continue its sequence, and gives
logits that depend on the sequence's tokens alone. So whatever the schedule – other requests, cancels,
copies, failed batches – each answer must be the one that its prompt gets when it runs alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtimes.engine import Delta, EngineError, Event, Finished, GenerateRequest, Sampling, Started, Usage, Working
from runtimes.llamacpp.loop import DecodeLoop, Delivery
from runtimes.llamacpp.machine import Compute
from runtimes.llamacpp.native import Aborted, NativeError, NativeSettings, Row
from runtimes.llamacpp.work import Job

VOCABULARY = 40
END = 39
CONTEXT = 48


class FakeNative:
    def __init__(self, slots: int, batch: int = 16) -> None:
        self.settings = NativeSettings("fake", CONTEXT, slots, batch)
        self.n_vocab, self.n_batch, self.context_length = VOCABULARY, batch, CONTEXT
        self.eog = frozenset({END})
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self.fail_next = self.given_up = False
        self.meanwhile: Callable[[], None] = lambda: None
        """What another thread does while a batch is computed."""
        self.rows: Sequence[Row] = ()
        self.copies = 0
        self.computed = 0

    def longest_piece(self) -> int:
        return 4

    def computing_s(self) -> float:
        return 0.0

    def decode(self, rows: Sequence[Row]) -> None:
        assert 0 < len(rows) <= self.n_batch
        if self.fail_next:
            self.fail_next = False
            raise NativeError("out of luck")
        for done, (token, position, sequence, _) in enumerate(rows):
            if done == len(rows) // 2:
                self.meanwhile()
            if self.given_up:
                raise Aborted  # part of the batch is in memory, as with the real one
            assert position == len(self.held[sequence]) < CONTEXT, "a row must continue its sequence"
            self.held[sequence].append(token)
            self.computed += 1
        self.rows = rows
        self._state = [zlib.crc32(bytes(self.held[s][: p + 1])) for _, p, s, _ in rows]

    def logits(self, row: int) -> NDArray[np.float32]:
        assert self.rows[row][3], "these logits were not asked for"
        return fake_logits(self._state[row])

    def trim(self, sequence: int, keep: int) -> None:
        assert keep <= len(self.held[sequence])
        del self.held[sequence][keep:]

    def copy(self, source: int, target: int) -> None:
        assert source != target
        self.held[target] = list(self.held[source])
        self.copies += 1

    def set_threads(self, threads: int) -> None:
        assert threads >= 1

    def give_up(self) -> None:
        self.given_up = True

    def piece(self, token: int) -> bytes:
        return bytes([65 + token % 26])

    def token_text(self, token: int) -> str:
        return f"<{token}>"


def fake_logits(state: int) -> NDArray[np.float32]:
    values = np.random.default_rng(state).normal(size=VOCABULARY).astype(np.float32)
    values[END] -= 0.5
    return values


def alone(prompt: list[int], most: int) -> list[int]:
    """What the made-up model answers, computed without any loop."""
    said: list[int] = []
    while len(said) < most and len(prompt) + len(said) < CONTEXT:
        token = int(fake_logits(zlib.crc32(bytes(prompt + said))).argmax())
        said.append(token)
        if token == END:
            break
    return said


@dataclass
class Parser:
    index: int
    said: list[int] = field(default_factory=list)
    stopped: bool = False

    def feed(self, token: int, piece: bytes, logprobs: object = None) -> Delta:
        return Delta(self.index, f"{token} ")

    def finish(self, reason: str) -> tuple[None, str]:
        return None, reason


class Plan:
    def __init__(self, broken: bool = False) -> None:
        self._broken = broken

    def constraint(self) -> None:
        return None

    def parser(self, index: int) -> Parser:
        return BrokenParser(index) if self._broken else Parser(index)


class BrokenParser(Parser):
    def feed(self, token: int, piece: bytes, logprobs: object = None) -> Delta:
        raise RuntimeError("a defect in the text side")


class Desk:
    """Collects what the loop delivers."""

    def __init__(self) -> None:
        self.events: dict[int, list[Event]] = {}
        self.errors: dict[int, EngineError] = {}

    def deliver(self, delivery: Delivery) -> None:
        for job, outcome in delivery:
            assert not self.over(job), "nothing may follow the end"
            if isinstance(outcome, EngineError):
                self.errors[job] = outcome
            else:
                self.events.setdefault(job, []).extend(outcome)

    def over(self, job: int) -> bool:
        return job in self.errors or any(isinstance(e, Usage) for e in self.events.get(job, []))

    def said(self, job: int, index: int = 0) -> list[int]:
        texts = (e.text for e in self.events.get(job, []) if isinstance(e, Delta) and e.index == index)
        return [int(t) for t in "".join(texts).split()]

    def one(self, job: int, kind: type[Event]) -> Event:
        [event] = [e for e in self.events[job] if isinstance(e, kind)]
        return event


def make(slots: int, batch: int = 16) -> tuple[FakeNative, Desk, DecodeLoop]:
    native, desk, now = FakeNative(slots, batch), Desk(), iter(range(10**9))
    loop = DecodeLoop(
        native,
        desk.deliver,
        clock=lambda: next(now) / 100,
        compute=Compute(2),
        max_prefill=batch,  # type: ignore[arg-type]
    )
    return native, desk, loop


def job(number: int, prompt: list[int], most: int = 8, n: int = 1, partition: str = "", broken: bool = False) -> Job:
    request = GenerateRequest(
        prompt="", max_tokens=most, n=n, sampling=Sampling(temperature=0.0), cache_partition=partition
    )
    tokens = np.array(prompt, dtype=np.int32)
    return Job(number, request, tokens, Plan(broken), 1, 0.0, [Started(len(prompt))])  # type: ignore[arg-type]


def finish(loop: DecodeLoop, steps: int = 20_000) -> None:
    for _ in range(steps):
        if not loop.step() and not loop.open_requests:
            return
    raise AssertionError("the loop does not come to an end")


def check_alone(desk: Desk, number: int, prompt: list[int], most: int, n: int) -> None:
    expected = alone(prompt, most)
    shown = [t for t in expected if t != END]
    usage = desk.one(number, Usage)
    assert usage.prompt_tokens == len(prompt)
    assert usage.completion_tokens == len(expected) * n
    assert 0 <= usage.cached_tokens < len(prompt)
    for index in range(n):
        assert desk.said(number, index) == shown
        [reason] = [e.reason for e in desk.events[number] if isinstance(e, Finished) and e.index == index]
        assert reason == ("stop" if expected[-1:] == [END] else "length")


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=CONTEXT - 1)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), prompts, st.integers(0, 60), st.integers(1, 3), st.sampled_from(["", "a"])),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("fail")),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(actions, st.integers(1, 4), st.sampled_from([4, 16]))
def test_every_answer_is_the_one_that_its_prompt_gets_alone(script: list[tuple], slots: int, batch: int) -> None:
    native, desk, loop = make(slots, max(batch, slots))
    asked: dict[int, tuple[list[int], int, int]] = {}
    cancelled: set[int] = set()
    failures = 0
    for action, *details in script:
        if action == "submit":
            prompt, most, n, partition = details
            number = len(asked)
            asked[number] = (prompt, most, n)
            loop.submit(job(number, prompt, most, n, partition))
        elif action == "cancel" and not desk.over(details[0]):
            cancelled.add(details[0])
            loop.cancel(details[0])
        elif action == "step":
            for _ in range(details[0]):
                loop.step()
        elif action == "fail":
            native.fail_next = True
            failures += 1
    native.fail_next = False
    finish(loop)
    for number, (prompt, most, n) in asked.items():
        if number in cancelled:
            continue
        assert desk.over(number)
        if number not in desk.errors:
            check_alone(desk, number, prompt, most, n)
    assert failures or not desk.errors
    assert (loop.busy, loop.waiting, loop.open_requests) == (0, 0, 0)


def test_nothing_is_delivered_after_a_cancel() -> None:
    _, desk, loop = make(2)
    loop.submit(job(1, [1, 2, 3], 40))
    loop.submit(job(2, [2, 2, 3], 40))
    loop.step()
    loop.cancel(1)
    loop.step()
    before = len(desk.events.get(1, []))
    finish(loop)
    assert len(desk.events.get(1, [])) == before
    assert not any(isinstance(e, Usage) for e in desk.events.get(1, []))
    check_alone(desk, 2, [2, 2, 3], 40, 1)


def test_a_cancel_frees_the_slot_for_the_next_step() -> None:
    _, desk, loop = make(1)
    loop.submit(job(1, [1] * 30, 10))
    loop.step()
    loop.submit(job(2, [5, 6], 3))
    loop.cancel(1)
    loop.step()
    assert any(isinstance(e, Started) for e in desk.events[2])


def test_a_cancel_lets_the_running_step_end() -> None:
    """A batch that is given up changes where llama.cpp keeps later tokens of other slots: see `Native.give_up`."""
    native, _, loop = make(2)
    loop.submit(job(1, [3] * 30, 4))
    native.meanwhile = lambda: loop.cancel(1)
    loop.step()
    assert native.computed == 16, "the whole piece"
    assert not native.given_up
    finish(loop)
    assert native.computed == 16, "and nothing after it"


def test_the_end_gives_the_running_step_up() -> None:
    native, desk, loop = make(2)
    loop.submit(job(1, [3] * 30, 4))
    native.meanwhile = loop.close
    loop.run()
    assert native.computed == 8
    assert not desk.over(1)


def test_a_defect_in_one_requests_text_costs_only_that_request() -> None:
    _, desk, loop = make(3)
    loop.submit(job(1, [1, 2, 3], 9))
    loop.submit(job(2, [1, 2, 4], 9, n=2, broken=True))
    loop.submit(job(3, [7, 8], 9))
    finish(loop)
    assert set(desk.errors) == {2}
    assert "defect" not in desk.errors[2].message
    check_alone(desk, 1, [1, 2, 3], 9, 1)
    check_alone(desk, 3, [7, 8], 9, 1)


def test_several_choices_share_one_prefill() -> None:
    native, desk, loop = make(4, 64)
    prompt = next(
        [*range(30), *range(9), last] for last in range(38) if END not in alone([*range(30), *range(9), last], 4)
    )
    loop.submit(job(1, prompt, 4, n=4))
    finish(loop)
    check_alone(desk, 1, prompt, 4, 4)
    # Each further choice computes only the prompt's last token; of 4 tokens said, 3 are computed.
    assert native.computed == len(prompt) + 3 + 4 * 3
    assert native.copies == 3


def test_a_long_prompt_never_stalls_a_running_answer_for_more_than_one_step() -> None:
    native, desk, loop = make(2, 8)
    talker = next(p for p in ([a, b] for a in range(38) for b in range(38)) if len(alone(p, 12)) == 12)
    loop.submit(job(1, talker, 12))
    loop.step()
    loop.submit(job(2, [3] * 40, 1))
    gaps, since = [], 0
    while not desk.over(1):
        before = len(desk.said(1))
        loop.step()
        since = 0 if len(desk.said(1)) > before or desk.over(1) else since + 1
        gaps.append(since)
    assert max(gaps) == 1
    assert native.computed > 20


def test_those_without_a_token_hear_that_the_engine_is_at_work() -> None:
    _, desk, loop = make(2, 4)
    now = 0.0
    loop._clock = lambda: now
    loop.submit(job(1, [4] * 40, 1))
    loop.submit(job(2, [5] * 39, 2, n=2))  # its second choice has to wait for a slot
    loop.submit(job(3, [6] * 40, 1))  # has not started
    told = lambda number: sum(isinstance(e, Working) for e in desk.events.get(number, []))  # noqa: E731
    loop.step()
    assert [told(number) for number in (1, 2, 3)] == [0, 0, 0]
    now = 1.0
    loop.step()
    loop.step()
    assert [told(number) for number in (1, 2, 3)] == [1, 1, 0]
    finish(loop)
    assert all(isinstance(desk.events[number][0], Started) for number in (1, 2, 3))


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    _, desk, loop = make(2, 4)
    loop.submit(job(1, [3] * 40, 1))
    loop.step()
    loop.submit(job(2, [5, 6, 7], 1))
    for _ in range(3):
        loop.step()
    assert desk.over(2)
    assert not desk.over(1)


def test_nobody_is_said_to_have_started_before_it_is_computed() -> None:
    _, desk, loop = make(3, 4)
    for number in (1, 2, 3):
        loop.submit(job(number, [number] * (40 - number), 1))
    loop.step()
    assert set(desk.events) == {1, 3}  # the oldest and the shortest share the first step
    finish(loop)
    assert all(isinstance(desk.events[number][0], Started) for number in (1, 2, 3))


def test_neither_many_choices_nor_many_requests_keep_others_out() -> None:
    _, desk, loop = make(2)
    ended: list[int] = []
    deliver = desk.deliver

    def watch(delivery: Delivery) -> None:
        ended.extend(j for j, out in delivery if not isinstance(out, EngineError) and isinstance(out[-1], Usage))
        deliver(delivery)

    loop._deliver = watch
    loop.submit(job(1, [1, 2, 3], 6, n=12, partition="many choices"))
    for number in range(2, 12):
        loop.submit(job(number, [number, 2, 3], 6, partition="many requests"))
    loop.submit(job(12, [9, 2, 3], 6, partition="one request"))
    finish(loop)
    assert ended.index(12) <= 2


def test_a_model_that_cannot_forget_a_part_survives_a_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recurrent models refuse to be cut at a position; all of the sequence is gone then."""
    native, desk, loop = make(2, 4)
    trim = native.trim

    def cut(sequence: int, keep: int) -> None:
        if keep > 0:
            trim(sequence, 0)
            raise NativeError("cannot be cut")
        trim(sequence, keep)

    monkeypatch.setattr(native, "trim", cut)
    loop.submit(job(1, [3] * 20, 4))
    loop.step()
    loop.submit(job(2, [3] * 3 + [4] * 9, 4))
    loop.cancel(1)
    finish(loop)
    check_alone(desk, 2, [3] * 3 + [4] * 9, 4, 1)


def test_waiting_requests_are_served_in_their_order() -> None:
    _, desk, loop = make(2)
    order: list[int] = []
    deliver = desk.deliver

    def watch(delivery: Delivery) -> None:
        order.extend(j for j, out in delivery if not isinstance(out, EngineError) and isinstance(out[0], Started))
        deliver(delivery)

    loop._deliver = watch
    for number in range(12):
        loop.submit(job(number, [number, 1, 2], 5))
    finish(loop)
    assert order == list(range(12))
