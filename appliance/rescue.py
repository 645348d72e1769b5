"""Going on with a stream that broke after the client had seen its beginning: what was sent, and how the next target is
asked for the rest.

What was sent is read again from the bytes themselves, when it is needed: for a stream that does not break nothing is
done.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from appliance.dialects.chat import AssistantMessage, ChatRequest, UserMessage
from appliance.dialects.kinds import Kind, Request
from appliance.dialects.splice import Sent, Splice, sent
from appliance.errors import BadRequest, Diverged, OutpostError, UpstreamError
from appliance.providers.upstream import Call
from appliance.routing.plan import Candidate
from runtimes.engine import Event

MOST_RESUMED = 4 * 1024 * 1024
"""Bytes of a stream that is gone on with; of a longer one not enough is known."""
LEAST_REST = 16
"""Tokens that the rest may have in any case: some targets take no smaller bound."""
GO_ON = (
    "Your last message was cut off in the middle. Continue it exactly where it stops: "
    "begin with the very next character, repeat nothing, explain nothing."
)

Mode = Literal["prefill", "repeat", "instruct"]
"""prefill: the target gets the beginning of the answer and goes on with it. repeat: it is asked the same again, and
what it repeats is left out. instruct: it is told to go on."""


class Rescue:
    """Of one exchange."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self.pieces: list[bytes] = []
        """What the client was sent."""
        self._tried: dict[str, list[Mode]] = {}
        """The ways that a target has refused, or that came to nothing with it."""
        self._mode: Mode = "repeat"

    @staticmethod
    def suits(request: Request) -> bool:
        """Whether its answer can be gone on with at all: one text, with no logprobs beside it."""
        return request.choices == 1 and getattr(request, "logprobs", None) in (None, False)

    def may_resume(self) -> bool:
        """Whether there is a way to go on with what was sent."""
        if self._kind.make_reader is None:
            return False
        try:
            return sent(self._events("")).resumable
        except OutpostError:
            return False  # it holds what only its maker's clients know

    def refused(self, target: str, error: OutpostError) -> None:
        """The present way was no good with a target, which is for the next one to know."""
        if isinstance(error, (Diverged, BadRequest)):
            self._tried.setdefault(target, []).append(self._mode)

    def prepare(self, call: Call, candidate: Candidate) -> None:
        """Have a call ask for the rest. Raises Diverged where no way is left."""
        target = candidate.target
        events = self._events(target.name)
        seen = sent(events)
        self._mode = mode = self._choose(candidate, seen)
        frame = self._kind.refit(call.frame(), self.pieces)
        renderer = self._kind.make_stream(frame, call.tally)
        renderer.feed(events)  # what it writes of them has been sent
        call.tally.clear()
        if mode != "repeat" and isinstance(call.request, ChatRequest):
            call.request = _asking_for_the_rest(call.request, seen, mode)
            call.native = None
        call.render = Splice(
            renderer, seen, repeats=mode == "repeat", skip_space=mode != "repeat" and seen.text[-1:].isspace()
        )

    def _choose(self, candidate: Candidate, seen: Sent) -> Mode:
        tried = self._tried.get(candidate.target.name, ())
        request = candidate.request
        plain = isinstance(request, ChatRequest) and seen.only_text
        if plain and candidate.target.prefill and "prefill" not in tried:
            return "prefill"
        if "repeat" not in tried:
            return "repeat"
        if plain and getattr(request, "response_format", None) is None and "instruct" not in tried:
            return "instruct"
        raise UpstreamError(f"{candidate.target.name} cannot go on with the answer.", code=Diverged.code)

    def _events(self, target: str) -> list[Event]:
        make_reader = self._kind.make_reader
        assert make_reader is not None  # asked for by may_resume
        return make_reader(target, None).feed(b"".join(self.pieces))


def _asking_for_the_rest(request: ChatRequest, seen: Sent, mode: Mode) -> ChatRequest:
    more = [AssistantMessage(content=seen.text.rstrip())]
    told = more if mode == "prefill" else [*more, UserMessage(content=GO_ON)]
    changes: dict[str, object] = {"messages": [*request.messages, *told]}
    for field in ("max_tokens", "max_completion_tokens"):
        # Pieces are counted, of which each has a token or more: nobody gets less than was asked for.
        if (most := getattr(request, field)) is not None and not request.reasoning:
            changes[field] = max(min(most, LEAST_REST), most - seen.pieces)
    return msgspec.structs.replace(request, **changes)
