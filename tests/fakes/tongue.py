"""A dialect as the fake upstream speaks it: one entry of `tongues.TONGUES`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.replies import Reply, Seen, data_only
from tests.fakes.talk import Question, Said, Spoken

Wrong = tuple[int, dict[str, str], bytes]
"""Status, headers and body of an error."""


@dataclass(frozen=True)
class Tongue:
    name: str
    owns: Callable[[str], bool]
    """Whether a path, without its query, is one of this dialect."""
    question: Callable[[Seen], Question]
    whole: Callable[[Question, Said], bytes]
    spoken: Callable[[Question, Said], Spoken]
    error: Callable[[int, str, str | None], Wrong]
    """From a status, a message and a code."""
    troubles: Mapping[str, tuple[int, str, str | None]] = field(default_factory=dict)
    """Status, message and code for `context`, `filtered` and `no_prefill`, as this vendor words them."""
    frame: Callable[[bytes, bytes], bytes] = data_only
    comment: bytes = b": keep-alive\n\n"
    content_type: str = "text/event-stream"

    def reply(self, question: Question, said: Said, **how: Any) -> Reply:
        """The answer, streamed or whole as it was asked for."""
        if not question.stream:
            return Reply(body=self.whole(question, said), **how)
        return self.stream(self.spoken(question, said), **how)

    def stream(self, spoken: Spoken, **how: Any) -> Reply:
        return Reply(
            events=spoken.events,
            marker=spoken.marker,
            frame=self.frame,
            comment=self.comment,
            content_type=self.content_type,
            **how,
        )

    def refuse(self, status: int, message: str, code: str | None = None, **headers: str) -> Reply:
        made_status, made, body = self.error(status, message, code)
        return Reply(made_status, {**made, **{name.replace("_", "-"): v for name, v in headers.items()}}, body)

    def trouble(self, name: str) -> Reply:
        return self.refuse(*self.troubles[name])


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def text_of(content: Any, *names: str) -> tuple[str, int]:
    """The text of a message's content and how many other things are in it; `names` are the keys that hold text."""
    if content is None:
        return "", 0
    if isinstance(content, str):
        return content, 0
    texts, media = [], 0
    for part in content:
        found = next((part[name] for name in names if isinstance(part.get(name), str)), None)
        if found is None:
            media += 1
        else:
            texts.append(found)
    return "\n".join(texts), media


def halves(text: str) -> list[str]:
    """Arguments as they come, in two pieces."""
    middle = len(text) // 2
    return [piece for piece in (text[:middle], text[middle:]) if piece]
