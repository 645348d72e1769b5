"""What a fake model is asked and what it says, in no dialect: the middle between the tongues of the fake upstream."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

Finish = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass
class Call:
    """A tool call."""

    id: str
    name: str
    arguments: dict[str, Any]

    @property
    def json(self) -> str:
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass
class Turn:
    """One message: `text` is all of it that can be read, `results` the answers of tools by the id of their call."""

    role: Literal["system", "user", "assistant", "tool"]
    text: str = ""
    media: int = 0
    """Images, sounds and documents in it."""
    calls: list[Call] = field(default_factory=list)
    results: list[str] = field(default_factory=list)


@dataclass
class Tool:
    name: str
    description: str
    schema: dict[str, Any]


@dataclass
class Question:
    """A request as a fake model sees it."""

    model: str
    stream: bool = False
    turns: list[Turn] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    choice: str = "auto"
    """auto, none, required, or the name of the tool that has to be called."""
    parallel: bool = True
    schema: dict[str, Any] | None = None
    """What the answer has to keep to; {} is any JSON object."""
    stop: list[str] = field(default_factory=list)
    n: int = 1
    logprobs: int | None = None
    """How many alternatives a token is shown with; None: no logprobs."""
    most: int | None = None
    """Tokens of the answer."""
    think: bool = False
    count: bool = True
    """Whether a stream tells its usage."""
    echo: dict[str, Any] = field(default_factory=dict)
    """What the answer repeats of the request, where a dialect does that."""

    @property
    def last(self) -> Turn:
        return self.turns[-1] if self.turns else Turn("user")

    @property
    def results(self) -> list[str]:
        """What the tools gave since the model spoke last."""
        found: list[str] = []
        for turn in reversed(self.turns):
            if turn.role != "tool":
                break
            found = turn.results + found
        return found

    @property
    def asked(self) -> str:
        """What the user said last."""
        return next((turn.text for turn in reversed(self.turns) if turn.role == "user" and turn.text), "")


@dataclass
class Said:
    """An answer. A piece is a token: streams send them one by one."""

    pieces: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    thought: list[str] = field(default_factory=list)
    finish: Finish = "stop"
    stop_sequence: str | None = None
    prompt: int = 5
    """Tokens, the cached ones included."""
    cached: int = 0
    completion: int | None = None
    """Tokens; None: as many as there are pieces, those of thoughts and arguments included."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def tokens(self) -> int:
        if self.completion is not None:
            return self.completion
        return len(self.pieces) + len(self.thought) + 4 * len(self.calls)


@dataclass
class Spoken:
    """An answer as the events of a stream, in one dialect."""

    events: list[bytes]
    """The data of each event, without those that say that the answer is complete."""
    lead: int
    """How many of them come before the first piece of text."""
    marker: list[bytes] = field(default_factory=list)
    """The data of those that say it."""


def words(text: str) -> list[str]:
    """The pieces of a text: each word with the space before it."""
    pieces = text.split(" ")
    return [pieces[0], *(f" {word}" for word in pieces[1:])] if text else []
