"""Going on with a stream that broke after the client had seen its beginning: what was sent, and how the next target is
asked for the rest.

What was sent is read again from the bytes themselves, when it is needed: for a stream that does not break nothing is
done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

import msgspec

from appliance.dialects.answer import Frame, StreamRenderer
from appliance.dialects.chat import AssistantMessage, ChatRequest, TextPart, UserMessage
from appliance.dialects.kinds import Kind, Request
from appliance.dialects.splice import Sent, Spent, Splice, Way, sent
from appliance.dialects.tally import BYTES_A_TOKEN, Tally
from appliance.errors import BadRequest, Diverged, OutpostError, UpstreamError
from appliance.providers.upstream import Call
from appliance.routing.candidate import Candidate
from runtimes.engine import Event

T = TypeVar("T")

MOST_RESUMED = 4 * 1024 * 1024
"""Bytes of a stream that is gone on with; of a longer one not enough is known."""
AT_ONCE = 32 * 1024
"""More bytes are read off the event loop: a mebibyte takes a tenth of a second."""
FEW_PIECES = 64
"""Of a stream, that are read at once."""
LEAST_REST = 16
"""Tokens that the rest may have in any case: some targets take no smaller bound."""
SHORT = 16
"""Characters. Whoever is asked again says less than this again mostly word for word, and nothing is lost if not."""
GO_ON = (
    "Your last message was cut off in the middle. Continue it exactly where it stops: "
    "begin with the very next character, repeat nothing, explain nothing."
)
GO_ON_TOKENS = len(GO_ON) // BYTES_A_TOKEN

Mode = Literal["prefill", "repeat", "instruct"]
"""prefill: the target gets the beginning of the answer and goes on with it. repeat: it is asked the same again, and
what it repeats is left out. instruct: it is told to go on."""


class _Read(NamedTuple):
    """What the first pieces say."""

    pieces: int
    """How many."""
    events: list[Event]
    sent: Sent


class Rescue:
    """Of one exchange."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self.pieces: list[bytes] = []
        """What the client was sent."""
        self._read: _Read | None = None
        self._tried: dict[str, list[Mode]] = {}
        """The ways that a target has refused, or that came to nothing with it."""
        self._mode: Mode = "repeat"
        self._splice: Splice | None = None
        """What the attempt that runs goes through; None: it is the one that began."""
        self._prompt_tokens = 0
        """Of the caller's prompt; 0: nobody has said."""
        self._spent = Spent()
        self._finished = False
        """The answer had come to its end before its stream failed: there is no rest of it."""

    @staticmethod
    def suits(request: Request) -> bool:
        """Whether its answer can be gone on with at all: one text, with no logprobs beside it."""
        return request.choices == 1 and getattr(request, "logprobs", None) in (None, False)

    async def may_resume(self) -> bool:
        """Whether there is a way to go on with what was sent."""
        if self._finished or self._kind.make_reader is None:
            return False
        try:
            return (await self._look()).sent.resumable
        except OutpostError:
            return False  # it holds what only its maker's clients know

    def ended(self, target: str, error: OutpostError, tally: Tally) -> None:
        """An attempt has failed after the client had seen the beginning. What it has used counts for what the client
        is told, and whether the present way was no good with a target is for the next one to know."""
        if isinstance(error, (Diverged, BadRequest)):
            self._tried.setdefault(target, []).append(self._mode)
        else:
            self._spend(tally)
            self._finished |= bool(tally.finish_reasons)
        self._splice = None

    def _spend(self, tally: Tally) -> None:
        spent, splice = self._spent, self._splice
        if splice is None and not self._read:
            self._spent = Spent(tally.prompt_tokens, tally.completion_tokens, tally.reasoning_tokens)
        elif splice is not None and splice.repeats:
            # It had said what was sent again, or some of it.
            completion = max(spent.completion_tokens, tally.completion_tokens)
            self._spent = msgspec.structs.replace(spent, completion_tokens=completion)
        elif splice is not None:
            said = max(0, tally.completion_tokens - tally.reasoning_tokens)
            self._spent = msgspec.structs.replace(spent, completion_tokens=spent.completion_tokens + said)

    async def prepare(self, call: Call, candidate: Candidate) -> None:
        """Have a call ask for the rest. Raises UpstreamError where no way is left."""
        read = await self._look()
        self._mode = mode = self._choose(candidate, read.sent)
        told = Tally()
        renderer = await self._aside(_begun, self._kind, call.frame(), self.pieces[: read.pieces], read.events, told)
        told.clear()
        way: Way = "again"
        before, told_tokens = "", 0
        if mode != "repeat" and isinstance(call.request, ChatRequest):
            before = _beginning(call.request)
            call.request = _asking_for_the_rest(call.request, read.sent, mode)
            call.native = None
            exact = "prefill" in candidate.target.upstream.capabilities.features
            way = "told" if mode == "instruct" else "from_there" if exact else "perhaps"
            told_tokens = self._spent.completion_tokens + (GO_ON_TOKENS if mode == "instruct" else 0)
        spent = msgspec.structs.replace(self._spent, told_tokens=told_tokens)
        call.render = self._splice = Splice(renderer, read.sent, call.tally, told, way=way, before=before, spent=spent)

    def _choose(self, candidate: Candidate, seen: Sent) -> Mode:
        for mode in _modes(candidate, seen):
            if mode not in self._tried.get(candidate.target.name, ()):
                return mode
        error = UpstreamError(f"{candidate.target.name} cannot go on with the answer.", code=Diverged.code)
        error.elsewhere = True  # nothing was asked of it
        raise error

    async def _look(self) -> _Read:
        """What was sent."""
        read = self._read
        if read is None or read.pieces != len(self.pieces):
            read = self._read = await self._aside(_read, self._kind, list(self.pieces))
        return read

    async def _aside(self, work: Callable[..., T], *args: object) -> T:
        """Others' tokens would wait for what takes long."""
        left = AT_ONCE
        for piece in self.pieces:
            left -= len(piece)
            if left < 0:
                return await asyncio.to_thread(work, *args)
        return work(*args)


def _read(kind: Kind, pieces: list[bytes]) -> _Read:
    assert kind.make_reader is not None  # asked for by may_resume
    reader, events = kind.make_reader("the target", None), list[Event]()
    for at in range(0, len(pieces), FEW_PIECES):
        # All at once would be one long step of the framer's, during which no other thread runs.
        events += reader.feed(b"".join(pieces[at : at + FEW_PIECES]))
    return _Read(len(pieces), events, sent(events))


def _begun(kind: Kind, frame: Frame, pieces: list[bytes], events: Sequence[Event], told: Tally) -> StreamRenderer:
    """A renderer that has written what was sent."""
    renderer = kind.make_stream(kind.refit(frame, pieces), told)
    renderer.feed(events)  # in one: it takes what it is fed first for what was sent
    return renderer


def _modes(candidate: Candidate, seen: Sent) -> Iterator[Mode]:
    """The ways to ask a target for the rest, the best first."""
    target, request = candidate.target, candidate.request
    tellable = isinstance(request, ChatRequest) and seen.only_text and not _calls(request)
    prefill = tellable and target.prefill
    if prefill and len(seen.text.strip()) < SHORT and "prefill" not in target.upstream.capabilities.features:
        # Whether it goes on or says it again cannot be told from so little.
        yield "repeat"
    if prefill:
        yield "prefill"
    yield "repeat"
    if tellable and getattr(request, "response_format", None) is None:
        yield "instruct"


def _calls(request: ChatRequest) -> bool:
    """Whether the caller's own beginning of an answer is one that no text can stand behind."""
    last = request.messages[-1]
    return isinstance(last, AssistantMessage) and bool(last.tool_calls)


def _beginning(request: ChatRequest) -> str:
    """What the caller has put before the answer."""
    last = request.messages[-1]
    if not isinstance(last, AssistantMessage) or last.content is None:
        return ""
    if isinstance(last.content, str):
        return last.content
    return "".join([part.text for part in last.content if isinstance(part, TextPart)])


def _asking_for_the_rest(request: ChatRequest, seen: Sent, mode: Mode) -> ChatRequest:
    messages, text = [*request.messages], seen.text.rstrip()
    last = messages[-1]
    if isinstance(last, AssistantMessage):
        # The caller has begun the answer: it is one message, as most targets would refuse two in a row.
        messages[-1] = msgspec.structs.replace(last, content=_longer(last, text))
    else:
        messages.append(AssistantMessage(content=text))
    if mode == "instruct":
        messages.append(UserMessage(content=GO_ON))
    changes: dict[str, object] = {"messages": messages}
    for field in ("max_tokens", "max_completion_tokens"):
        # Pieces are counted, of which each has a token or more: nobody gets less than was asked for.
        if (most := getattr(request, field)) is not None and not request.reasoning:
            changes[field] = max(min(most, LEAST_REST), most - seen.pieces)
    return msgspec.structs.replace(request, **changes)


def _longer(message: AssistantMessage, text: str) -> object:
    """The content of a message with some text behind it."""
    content = message.content
    if content is None or isinstance(content, str):
        return (content or "") + text
    parts = [*content]
    if parts and isinstance(parts[-1], TextPart):
        parts[-1] = msgspec.structs.replace(parts[-1], text=parts[-1].text + text)
    else:
        parts.append(TextPart(text=text))
    return parts
