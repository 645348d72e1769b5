"""The order in which texts of several requests are read."""

from __future__ import annotations

from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runtimes.engine import Embeddings, EngineError
from runtimes.llamacpp.embed import KV_BUDGET, EmbedJob, EmbedLoop, Frame, frame, in_turn, pack, sequences_for
from runtimes.llamacpp.native import Aborted, NativeError, NativeSettings, Row

BATCH, SEQUENCES = 16, 4


class FakeNative:
    """Embeds a text as its token count and its first token; knows the bounds of the real one."""

    def __init__(self) -> None:
        self.settings = NativeSettings("fake", BATCH, SEQUENCES, BATCH, embeddings=True)
        self.n_batch, self.n_embd = BATCH, 2
        self.trouble: list[Exception] = []
        self.rows: list[Row] = []

    def computing_s(self) -> float:
        return 0.0

    def decode(self, rows: list[Row]) -> None:
        if self.trouble:
            raise self.trouble.pop()
        assert 0 < len(rows) <= BATCH
        assert len({sequence for _, _, sequence, _ in rows}) <= SEQUENCES
        self.rows = rows

    def embedding(self, sequence: int) -> np.ndarray:
        tokens = [token for token, _, of, _ in self.rows if of == sequence]
        return np.array([len(tokens), tokens[0]], dtype=np.float32)

    def trim(self, sequence: int, keep: int) -> None:
        assert keep == 0

    def give_up(self) -> None:
        self.trouble.append(Aborted())


def expected(inputs: list[list[int]]) -> list[tuple[float, float]]:
    return [tuple(np.array([len(text), text[0]]) / np.hypot(len(text), text[0])) for text in inputs]


def vectors(result: Embeddings | EngineError) -> list[tuple[float, float]]:
    assert isinstance(result, Embeddings)
    return [tuple(np.frombuffer(vector, "<f4")) for vector in result.vectors]


texts = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=BATCH), min_size=1, max_size=9)


@given(st.lists(texts, min_size=1, max_size=6), st.sets(st.integers(0, 5)))
def test_each_job_gets_its_own_vectors_in_its_own_order(jobs: list[list[list[int]]], cancelled: set[int]) -> None:
    told: dict[int, Embeddings | EngineError] = {}
    native = FakeNative()
    loop = EmbedLoop(native, told.__setitem__)  # type: ignore[arg-type]  # as much of a Native as the loop uses
    for number, inputs in enumerate(jobs):
        loop.submit(EmbedJob(number, inputs))
    step = 0
    while True:
        if step == 1:
            for number in cancelled:
                loop.cancel(number)
        if not loop.step():
            break
        step += 1
    for number, inputs in enumerate(jobs):
        if number in told:
            assert np.allclose(vectors(told[number]), expected(inputs))
        else:
            assert number in cancelled
    assert loop.open_requests == 0


def test_the_end_gives_the_running_batch_up() -> None:
    told: dict[int, Embeddings | EngineError] = {}
    loop = EmbedLoop(FakeNative(), told.__setitem__)  # type: ignore[arg-type]
    loop.submit(EmbedJob(1, [[1] * 4] * 400))
    loop.close()
    loop.run()
    assert not loop.step()
    assert not told


def test_a_long_list_does_not_hold_up_a_short_one() -> None:
    told: dict[int, Embeddings | EngineError] = {}
    loop = EmbedLoop(FakeNative(), told.__setitem__)  # type: ignore[arg-type]
    loop.submit(EmbedJob(1, [[1] * 4] * 400))
    loop.step()
    loop.submit(EmbedJob(2, [[2] * 4] * 2))
    loop.step()
    assert 2 in told
    assert 1 not in told


def test_a_failed_batch_fails_those_that_were_in_it() -> None:
    told: dict[int, Embeddings | EngineError] = {}
    native = FakeNative()
    loop = EmbedLoop(native, told.__setitem__)  # type: ignore[arg-type]
    for number in range(6):
        loop.submit(EmbedJob(number, [[1] * 4]))
    native.trouble.append(NativeError("out of luck"))
    while loop.step():
        pass
    assert [number for number, result in sorted(told.items()) if isinstance(result, EngineError)] == [0, 1, 2, 3]
    assert [number for number, result in sorted(told.items()) if isinstance(result, Embeddings)] == [4, 5]


@given(st.lists(texts, max_size=6))
def test_turns_are_taken(jobs: list[list[list[int]]]) -> None:
    made = [EmbedJob(number, inputs) for number, inputs in enumerate(jobs)]
    order = [(job.id, place) for job, place in in_turn(made)]
    assert sorted(order) == [(job.id, place) for job in made for place in range(len(job.inputs))]
    assert [place for _, place in order] == sorted(place for _, place in order)
    assert [job for job, _ in islice(order, len(made))] == [job.id for job in made]


@given(st.lists(st.integers(1, BATCH), min_size=1, max_size=20))
def test_a_batch_is_as_full_as_it_can_be(lengths: list[int]) -> None:
    count = pack(lengths, BATCH, SEQUENCES)
    assert 1 <= count <= SEQUENCES
    assert sum(lengths[:count]) <= BATCH
    assert count in (SEQUENCES, len(lengths)) or sum(lengths[: count + 1]) > BATCH


QWEN3_EMBEDDING = 114_688
"""Bytes of keys and values a token, at 0.6B parameters."""


@given(st.integers(1, 1 << 28), st.integers(1, 1 << 24))
def test_memory_for_keys_and_values_is_bounded(context: int, kv_bytes: int) -> None:
    sequences = sequences_for(context, kv_bytes)
    assert 1 <= sequences <= 64
    assert sequences == 1 or sequences * context * kv_bytes <= KV_BUDGET


def test_how_many_texts_are_read_at_once() -> None:
    assert sequences_for(512, 0) == sequences_for(1 << 20, 0) == 64  # an encoder keeps nothing
    assert sequences_for(2048, QWEN3_EMBEDDING) == 4
    assert sequences_for(32_768, QWEN3_EMBEDDING) == 1


@given(st.lists(st.integers(1, 9), min_size=1), st.sampled_from([[], [101]]), st.sampled_from([[], [102]]))
def test_special_tokens_are_put_around_once(text: list[int], before: list[int], after: list[int]) -> None:
    found = frame(text, [*before, *text, *after])
    assert found == Frame(before, after)
    whole = [*before, *text, *after]
    for given_ids in (text, whole, [*before, *text], [*text, *after]):
        assert found.around(given_ids) == whole


def test_a_vocabulary_that_cannot_be_told_gets_no_special_tokens() -> None:
    assert frame([], [101, 102]) == frame([5], [101, 6, 102]) == Frame([], [])
