"""The protocol between gateway and engine, cut at every byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.engine import (
    ERRORS,
    ContextLengthExceeded,
    CountRequest,
    Delta,
    Embeddings,
    EmbedRequest,
    EngineStatus,
    Finished,
    GenerateRequest,
    PositionLogprobs,
    Sampling,
    Started,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from runtimes.llamacpp import wire

REQUEST = GenerateRequest(
    messages=[{"role": "user", "content": "hé \U0001f600"}],
    tools=[{"type": "function", "function": {"name": "f"}}],
    tool_choice={"type": "function", "function": {"name": "f"}},
    sampling=Sampling(temperature=0.5, seed=-3, logit_bias={7: -100.0}),
    logprobs=3,
    stop=["x"],
)
CALLS: list[wire.Call] = [
    wire.Generate(1, REQUEST),
    wire.Generate(2, GenerateRequest(prompt=[1, 2, 3])),
    wire.Embed(3, EmbedRequest(["a", [1, 2]])),
    wire.Count(4, CountRequest(REQUEST)),
    wire.Cancel(5),
    wire.Status(6),
]
LOGPROBS = PositionLogprobs(TokenLogprob("a", -0.5, [97]), [TokenLogprob("�", -1.0, [0xE2])])
REPLIES: list[wire.Reply] = [
    wire.Events(
        [
            (1, [Started(9), Delta(0, "text", [ToolCallDelta(0, "id", "f", "{")], [LOGPROBS])]),
            (2, [Finished("length", 1), Usage(9, 3, 2, 0.5)]),
        ]
    ),
    wire.Embedded(3, Embeddings([b"\0" * 8], 2, 1)),
    wire.Counted(4, 17),
    wire.State(6, EngineStatus(model="m", task="generate", context_length=8, slots=1)),
    wire.Failed(7, "context_length_exceeded", "too long", "messages"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1 << 20])
def test_messages_survive_any_cutting(size: int) -> None:
    stream = b"".join(map(wire.frame, [*CALLS])) + b"".join(map(wire.frame, REPLIES))
    frames = wire.Frames()
    bodies = [b for i in range(0, len(stream), size) for b in frames.feed(stream[i : i + size])]
    assert [wire.call_decoder.decode(b) for b in bodies[: len(CALLS)]] == CALLS
    assert [wire.reply_decoder.decode(b) for b in bodies[len(CALLS) :]] == REPLIES


def test_every_single_cut_gives_the_same_frames() -> None:
    stream = b"".join(map(wire.frame, REPLIES))
    for cut in range(len(stream) + 1):
        frames = wire.Frames()
        bodies = frames.feed(stream[:cut]) + frames.feed(stream[cut:])
        assert [wire.reply_decoder.decode(b) for b in bodies] == REPLIES


@given(st.binary(max_size=200))
def test_garbage_never_breaks_the_framer_otherwise_than_by_its_error(data: bytes) -> None:
    frames = wire.Frames()
    try:
        bodies = frames.feed(data)
    except wire.FrameError as error:
        assert "exceeds the limit" in error.message
        return
    assert sum(len(b) + 4 for b in bodies) <= len(data)


def test_an_oversized_length_is_refused_before_anything_is_kept() -> None:
    with pytest.raises(wire.FrameError):
        wire.Frames().feed((wire.MAX_FRAME + 1).to_bytes(4, "little"))


def test_errors_cross_the_border_with_code_and_param() -> None:
    for code, kind in ERRORS.items():
        crossed = wire.error_of(wire.failure(1, kind("m", param="p")))
        assert (type(crossed), crossed.message, crossed.param, crossed.code) == (kind, "m", "p", code)
    unknown = wire.error_of(wire.Failed(1, "from_the_future", "m"))
    assert unknown.message == "m"
    assert isinstance(wire.error_of(wire.failure(1, ContextLengthExceeded("x"))), ContextLengthExceeded)
