"""What the engine's socket offers, over made-up native libraries: who is admitted, and what an embedder reads."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtimes.engine import EmbedRequest, Finished, GenerateRequest, Sampling, Usage
from runtimes.llamacpp import wire
from runtimes.llamacpp.launch import LaunchSettings
from runtimes.llamacpp.native import NativeSettings, Row
from runtimes.llamacpp.server import Service
from tests.llamacpp.test_loop import FakeNative
from tests.llamacpp.test_loop import Plan as LoopPlan

CLS, SEP, VOCABULARY = 101, 102, 200
CONTEXT = 12


class FakeEmbedder:
    """Reads a letter as a token; its vector of a text tells which tokens it was given."""

    def __init__(self, *, framed: bool = True) -> None:
        self.settings = NativeSettings("fake", CONTEXT, 4, CONTEXT, embeddings=True)
        self.n_vocab, self.n_batch, self.n_embd, self.context_length = VOCABULARY, CONTEXT, 2, CONTEXT
        self.framed = framed
        self.read: list[list[int]] = []

    def tokenize(self, text: bytes, parse_special: bool, add_special: bool = False) -> list[int]:
        tokens = [letter - 97 for letter in text]
        return [CLS, *tokens, SEP] if add_special and self.framed else tokens

    def decode(self, rows: list[Row]) -> None:
        texts: dict[int, list[int]] = {}
        for token, _, sequence, _ in rows:
            texts.setdefault(sequence, []).append(token)
        self.read += texts.values()

    def embedding(self, sequence: int) -> np.ndarray:
        return np.ones(2, np.float32)

    def trim(self, sequence: int, keep: int) -> None:
        pass


class Plan(LoopPlan):
    tokens = None
    segments: list[Any] = []

    def tokenize(self, tokenize: Any) -> list[int]:
        return [1, 2, 3]


class Text:
    native_tools = False

    async def plan(self, request: GenerateRequest, *, prompt_only: bool = False) -> Plan:
        await asyncio.sleep(0)
        return Plan()


class TextNative(FakeNative):
    bos = eos = 0

    def tokenize(self, text: bytes, parse_special: bool, add_special: bool = False) -> list[int]:
        return list(text)


class Client:
    """One connection to a service, and what it was told by the number of its call."""

    def __init__(self, task: str, *, slots: int = 8, max_waiting: int = 0, native: Any = None) -> None:
        settings = LaunchSettings("s", "m", "model", task, CONTEXT, slots=slots, max_waiting=max_waiting)  # type: ignore[arg-type]
        if native is None:
            native = FakeEmbedder() if task == "embed" else TextNative(slots)
            native.settings = NativeSettings("fake", CONTEXT, 4 if task == "embed" else slots, CONTEXT, 1)
        self.service = Service(settings, native, None if task == "embed" else Text())  # type: ignore[arg-type]
        self.failed: dict[int, wire.Failed] = {}
        self.ended: set[int] = set()
        self.calls = 0

    def send(self, reply: wire.Reply) -> None:
        if isinstance(reply, wire.Failed):
            self.failed[reply.id] = reply
        elif isinstance(reply, wire.Embedded):
            self.ended.add(reply.id)
        elif isinstance(reply, wire.Events):
            self.ended |= {number for number, events in reply.items if isinstance(events[-1], Usage)}

    def generate(self, n: int = 1, most: int = 4) -> int:
        self.calls += 1
        request = GenerateRequest(prompt="", n=n, max_tokens=most, sampling=Sampling(temperature=0.0))
        self.service.call(1, wire.Generate(self.calls, request), self.send)
        return self.calls

    def embed(self, *inputs: str | list[int]) -> int:
        self.calls += 1
        self.service.call(1, wire.Embed(self.calls, EmbedRequest(list(inputs))), self.send)
        return self.calls

    def leave(self, number: int) -> None:
        self.service.call(1, wire.Cancel(number), self.send)

    async def settle(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    async def compute(self, steps: int = 200) -> None:
        loop = self.service.decode or self.service.embed
        assert loop is not None
        for _ in range(steps):
            loop.step()
            await self.settle()

    def code(self, number: int) -> str | None:
        return self.failed[number].code if number in self.failed else None


@pytest.mark.parametrize(("slots", "max_waiting", "n"), [(8, 0, 1), (8, 0, 8), (8, 4, 8), (8, 4, 12), (1, 0, 1)])
async def test_what_can_start_at_once_needs_no_place_to_wait(slots: int, max_waiting: int, n: int) -> None:
    client = Client("generate", slots=slots, max_waiting=max_waiting)
    number = client.generate(n)
    await client.settle()
    await client.compute()
    assert client.failed == {}
    assert client.ended == {number}
    assert client.service.status().open_requests == 0


@pytest.mark.parametrize(
    ("n", "words"), [(13, "n is 13.*at most 12.*args.slots.*args.max_waiting"), (129, "1 to 128"), (0, "1 to 128")]
)
async def test_a_request_that_never_fits_is_refused_by_name(n: int, words: str) -> None:
    client = Client("generate", slots=8, max_waiting=4)
    number = client.generate(n)
    await client.settle()
    assert (client.failed[number].code, client.failed[number].param) == ("invalid_request", "n")
    assert re.search(words, client.failed[number].message)


async def test_waiting_counts_beyond_the_free_slots_and_what_is_over_makes_room() -> None:
    client = Client("generate", slots=2, max_waiting=1)
    burst = [client.generate() for _ in range(5)]
    await client.settle()
    assert [client.code(number) for number in burst] == [None, None, None, "engine_overloaded", "engine_overloaded"]
    assert "3 at a time (2 that run, 1 that wait)" in client.failed[burst[3]].message
    client.leave(burst[0])
    after = client.generate()
    await client.settle()
    assert client.code(after) is None
    await client.compute()
    assert client.ended == {burst[1], burst[2], after}
    again = [client.generate(n=2), client.generate()]
    await client.settle()
    assert [client.code(number) for number in again] == [None, None]


async def test_a_choice_that_has_ended_makes_room_before_the_others_of_its_request() -> None:
    client = Client("generate", slots=2, max_waiting=0)
    first = client.generate(n=2)
    await client.settle()
    client.service._dispatch([(1, [Finished("stop", 0)])])
    second = client.generate()
    third = client.generate()
    await client.settle()
    assert [client.code(number) for number in (first, second, third)] == [None, None, "engine_overloaded"]


async def test_an_embedder_without_waiting_places_serves_one_request_at_a_time() -> None:
    client = Client("embed", max_waiting=0)
    first, second = client.embed("ab"), client.embed("c")
    await client.settle()
    assert [client.code(first), client.code(second)] == [None, "engine_overloaded"]
    await client.compute(3)
    third = client.embed("d")
    await client.settle()
    await client.compute(3)
    assert client.ended == {first, third}


@pytest.mark.parametrize("given", [[0, 1], [CLS, 0, 1], [0, 1, SEP], [CLS, 0, 1, SEP]])
async def test_token_ids_are_embedded_as_the_same_text_is(given: list[int]) -> None:
    native = FakeEmbedder()
    client = Client("embed", native=native)
    client.embed("ab", given)
    await client.settle()
    await client.compute(3)
    assert native.read == [[CLS, 0, 1, SEP]] * 2


async def test_a_vocabulary_without_special_tokens_gets_none() -> None:
    native = FakeEmbedder(framed=False)
    client = Client("embed", native=native)
    client.embed("ab", [0, 1])
    await client.settle()
    await client.compute(3)
    assert native.read == [[0, 1]] * 2


@pytest.mark.parametrize("token", [VOCABULARY, -1])
async def test_token_ids_of_another_tokenizer_are_refused_with_the_cure(token: int) -> None:
    client = Client("embed")
    number = client.embed([1, token])
    await client.settle()
    failed = client.failed[number]
    assert (failed.code, failed.param) == ("invalid_request", "input")
    assert f"token id {token} is outside the vocabulary (0 … {VOCABULARY - 1})" in failed.message
    assert "this model's own tokenizer" in failed.message
    assert "check_embedding_ctx_length=False" in failed.message


async def test_the_special_tokens_count_towards_the_context() -> None:
    client = Client("embed")
    fits = client.embed([1] * (CONTEXT - 2))
    await client.settle()
    await client.compute(3)
    too_long = client.embed([1] * (CONTEXT - 1))
    await client.settle()
    assert client.ended == {fits}
    assert client.code(too_long) == "context_length_exceeded"


async def test_a_text_that_cannot_fit_is_refused_before_its_tokens_are_looked_for() -> None:
    class Long(Plan):
        segments = [SimpleNamespace(text="a" * (4 * 48 + 1))]

        def tokenize(self, tokenize: Any) -> list[int]:
            raise AssertionError("it was tokenised")

    class Speaker(Text):
        async def plan(self, request: GenerateRequest, *, prompt_only: bool = False) -> Plan:
            return Long()

    client = Client("generate")
    client.service._text = Speaker()  # type: ignore[assignment]
    number = client.generate()
    await client.settle()
    assert client.code(number) == "context_length_exceeded"
    assert "more than 48 tokens" in client.failed[number].message
