"""How the fake upstream's models behave: the name of a model is the name of its behaviour.

What follows a `~` in a name says nothing; it is for tests that want many models of the same behaviour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.fakes.brain import think
from tests.fakes.replies import Reply, Seen
from tests.fakes.talk import Question, Said, Spoken, words
from tests.fakes.tongue import Tongue
from tests.fakes.tongue_openai import (
    OPENAI,
    TEXT,
    chat_events,
    chat_whole,
    completion_whole,
    embeddings_whole,
    error,
    without_usage,
)
from tests.fakes.tongues import tongue_of

Behaviour = Callable[[Seen], Reply]


# --- one short answer, in whatever dialect --------------------------------------------------------


def ok(seen: Seen) -> Reply:
    """The normal answer to whatever was asked."""
    tongue = tongue_of(seen.path)
    if tongue is OPENAI:
        return Reply(events=chat_events()) if seen.body.get("stream") else Reply(body=chat_whole())
    if tongue is not None:
        return tongue.reply(tongue.question(seen), Said(list(TEXT), cached=2))
    if seen.path.endswith("/embeddings"):
        return Reply(body=embeddings_whole(seen.body.get("input")))
    if seen.method == "GET":
        return Reply(body=b'{"object": "list", "data": []}')
    return Reply(body=completion_whole())


def _spoken(seen: Seen) -> tuple[Tongue, Spoken]:
    """The short answer as a stream."""
    tongue = tongue_of(seen.path) or OPENAI
    if tongue is OPENAI:
        return tongue, Spoken(chat_events(), 1, [b"[DONE]"])
    return tongue, tongue.spoken(tongue.question(seen), Said(list(TEXT), cached=2))


def _stream(*, after: int | None = None, hold: int | None = None, **how: Any) -> Behaviour:
    """A stream in any case; `after` and `hold` count pieces of text, -1 is before the last event of the lead."""

    def reply(seen: Seen) -> Reply:
        tongue, spoken = _spoken(seen)
        if after is not None:
            how["after"] = max(0, spoken.lead + after)
        if hold is not None:
            how["hold_after"] = max(0, spoken.lead + hold)
        return tongue.stream(spoken, **how)

    return reply


def _with_event(data: bytes, at: int, *, hold: int | None = None) -> Behaviour:
    """A stream with one event more after so many pieces; with `hold` the pieces after which it waits."""

    def reply(seen: Seen) -> Reply:
        tongue, spoken = _spoken(seen)
        spoken.events.insert(max(0, spoken.lead + at), data)
        return tongue.stream(spoken, hold_after=None if hold is None else spoken.lead + hold)

    return reply


def _fixed(reply: Reply) -> Behaviour:
    return lambda seen: reply


def _refusing(status: int, message: str, code: str | None = None, **headers: str) -> Behaviour:
    """An error in OpenAI's shape, or in that of the dialect that was asked in."""

    def reply(seen: Seen) -> Reply:
        tongue = tongue_of(seen.path)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if tongue in (None, OPENAI):
            return error(status, message, code, named)
        assert tongue is not None
        return tongue.refuse(status, message, code, **headers)

    return reply


def _held(seen: Seen) -> Reply:
    reply = ok(seen)
    reply.hold = True
    return reply


def _no_usage(seen: Seen) -> Reply:
    return Reply(events=chat_events()[:-1]) if seen.body.get("stream") else Reply(body=without_usage(chat_whole()))


# --- the able model -------------------------------------------------------------------------------


def capable(seen: Seen) -> Reply:
    tongue = tongue_of(seen.path)
    if tongue is None:
        return ok(seen)
    question = tongue.question(seen)
    if tongue.name in ("anthropic", "anthropic_count") and "max_tokens" not in seen.body and question.stream:
        return tongue.refuse(400, "max_tokens: Field required")
    return tongue.reply(question, think(question))


# --- a long answer that breaks --------------------------------------------------------------------

LONG = words(
    "Alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey xray yankee zulu and then it is over."
)
LONG_TEXT = "".join(LONG)
BROKEN_AT = 2 * len(LONG) // 3
"""Pieces of the long answer that come before it breaks."""
PACE_S = 0.01
"""Between them, so that the client has seen some of them by then."""


def rest_of(question: Question) -> list[str]:
    """What a model says that is handed the beginning of the long answer: the rest of it."""
    for turn in reversed(question.turns):
        begun = turn.text.rstrip()
        if turn.role == "assistant" and begun and LONG_TEXT.startswith(begun):
            rest = LONG_TEXT[len(turn.text) if LONG_TEXT.startswith(turn.text) else len(begun) :]
            pieces = words(rest)
            return pieces[1:] if pieces and not pieces[0] else pieces
    return list(LONG)


def _long(
    *, after: int | None = None, hold: int | None = None, pause: int | None = None, repeat: bool = False, **how: Any
) -> Behaviour:
    """The long answer; `after`, `hold` and `pause` count pieces of it. A whole answer breaks in its middle."""

    def reply(seen: Seen) -> Reply:
        tongue = tongue_of(seen.path)
        if tongue is None:
            return ok(seen)
        question = tongue.question(seen)
        said = Said(list(LONG) if repeat else rest_of(question), prompt=40 + sum(len(t.text) for t in question.turns))
        if not question.stream:
            made = tongue.reply(question, said, **how)
            made.hold_after, made.pause_after = hold, pause
            return made
        spoken = tongue.spoken(question, said)
        return tongue.stream(
            spoken,
            **how,
            after=None if after is None else spoken.lead + after,
            hold_after=None if hold is None else spoken.lead + hold,
            pause_after=None if pause is None else spoken.lead + pause,
        )

    return reply


def _long_malformed(seen: Seen) -> Reply:
    tongue = tongue_of(seen.path) or OPENAI
    question = tongue.question(seen)
    said = Said(rest_of(question))
    if not question.stream:
        body = tongue.whole(question, said)
        return Reply(body=body[: len(body) // 2])
    spoken = tongue.spoken(question, said)
    spoken.events.insert(spoken.lead + BROKEN_AT, b'{"choices": [{"delta"')
    return tongue.stream(spoken, pace_s=PACE_S)


def _long_endless(seen: Seen) -> Reply:
    """All of the answer but its end marker, and then nothing more; the connection stays open."""
    tongue = tongue_of(seen.path) or OPENAI
    question = tongue.question(seen)
    if not question.stream:
        return _long()(seen)
    spoken = tongue.spoken(question, Said(rest_of(question)))
    return tongue.stream(spoken, hold_after=len(spoken.events))


def _long_empty(seen: Seen) -> Reply:
    tongue = tongue_of(seen.path) or OPENAI
    return tongue.reply(tongue.question(seen), Said([], completion=0))


def _long_without_prefill(seen: Seen) -> Reply:
    tongue = tongue_of(seen.path) or OPENAI
    question = tongue.question(seen)
    if question.last.role == "assistant":
        return tongue.trouble("no_prefill")
    return _long()(seen)


def _long_silent(seen: Seen) -> Reply:
    reply = _long()(seen)
    reply.hold = True
    return reply


def _trouble(name: str) -> Behaviour:
    return lambda seen: (tongue_of(seen.path) or OPENAI).trouble(name)


def _overloaded(seen: Seen) -> Reply:
    tongue = tongue_of(seen.path) or OPENAI
    return tongue.refuse(529 if tongue.name == "anthropic" else 503, "Overloaded")


BEHAVIOURS: dict[str, Behaviour] = {
    "ok": ok,
    "silent": _held,
    "role-then-silent": _stream(hold=0),
    "stall": _stream(hold=2),
    # The faults after the first token wait for `release`, so that the token is out before they happen.
    "cut": _stream(end="cut", after=2, hold=2),
    "reset": _stream(end="reset", after=2, hold=2),
    "bad-chunk": _stream(end="bad_chunk", after=2, hold=2),
    "bad-chunk-before-token": _stream(end="bad_chunk", after=0),
    "cut-before-token": _stream(end="cut", after=0),
    "no-end-marker": _stream(end="no_marker", hold=2),
    "malformed": _with_event(b'{"choices": [{"delta"', 2, hold=2),
    "malformed-first": _with_event(b"{nonsense", -99),
    "error-in-stream": lambda seen: Reply(
        events=[*chat_events()[:3], b'{"error": {"message": "account sk-secret is broke", "code": 500}}'], hold_after=3
    ),
    "error-first": lambda seen: Reply(events=[b'{"error": {"message": "no"}}']),
    "empty": _fixed(Reply(events=[])),
    "no-usage": _no_usage,
    "slices": _stream(slices=1),
    "crlf": _stream(line_end=b"\r\n"),
    "comments": _stream(comments=True),
    "json-for-stream": _fixed(Reply(body=chat_whole())),
    "garbage": _fixed(Reply(body=b"<html>502 Bad Gateway</html>")),
    "closed": _fixed(Reply(close=True)),
    "cut-whole": _fixed(Reply(body=chat_whole(), end="cut")),
    "bad-chunk-whole": _fixed(Reply(body=chat_whole(), end="bad_chunk")),
    "429": _refusing(429, "slow down", "rate_limit_exceeded"),
    "429-after": _refusing(429, "slow down", "rate_limit_exceeded", Retry_After="7"),
    "500": _refusing(500, "sk-upstream-key leaked stack trace"),
    "503": _refusing(503, "overloaded"),
    "503-after": _refusing(503, "overloaded", None, Retry_After="3"),
    "401": _refusing(401, "Incorrect API key provided: sk-upstream-key"),
    "404": _refusing(404, "no such model"),
    "400": _refusing(400, "temperature is bad for sk-upstream-key", "invalid_value"),
    "400-context": _fixed(error(400, "This model's maximum context length is 8 tokens.", "context_length_exceeded")),
    "redirect": _fixed(Reply(307, {"Location": "http://127.0.0.1:1/elsewhere"}, b"")),
    "compressed": _fixed(Reply(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b\x08\x00")),
    # What an outside judge asks a good model.
    "capable": capable,
    # The long answer, and what may become of it.
    "long": _long(),
    "long-repeat": _long(repeat=True),
    "long-no-prefill": _long_without_prefill,
    "long-slices": _long(slices=7),
    "long-comments": _long(comments=True),
    "long-429": _refusing(429, "slow down", "rate_limit_exceeded"),
    "long-429-after": _refusing(429, "slow down", "rate_limit_exceeded", Retry_After="1"),
    "long-500": _refusing(500, "Internal error"),
    "long-503": _overloaded,
    "long-closed": _fixed(Reply(close=True)),
    "long-reset-first": _fixed(Reply(close=True, end="reset")),
    "long-silent": _long_silent,
    "long-slow": _long(pause=0, pause_s=4.0),
    "long-cut": _long(after=BROKEN_AT, end="cut", pace_s=PACE_S),
    "long-cut-early": _long(after=1, end="cut", pace_s=PACE_S),
    "long-reset": _long(after=BROKEN_AT, end="reset", pace_s=PACE_S),
    "long-bad-chunk": _long(after=BROKEN_AT, end="bad_chunk", pace_s=PACE_S),
    "long-stall": _long(hold=BROKEN_AT, pace_s=PACE_S),
    "long-malformed": _long_malformed,
    "long-no-marker": _long(end="no_marker"),
    "long-endless": _long_endless,
    "long-empty": _long_empty,
    "long-context": _trouble("context"),
    "long-filtered": _trouble("filtered"),
}
