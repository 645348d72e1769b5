"""What a caller was told and what a shadow says, read so that they can be compared. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from appliance.dialects import openai_reader
from appliance.dialects.kinds import Kind
from appliance.dialects.messages import reader as messages_reader
from appliance.dialects.responses import reader as responses_reader
from appliance.errors import OutpostError
from appliance.records.rows import ExchangeRow
from appliance.routing.shadow import Comparison, Said
from runtimes.engine import Delta, Event, Finished

Result = Literal["same", "different", "failed", "skipped", "dropped"]
"""failed: the shadow gave no answer. skipped: it could not have the request, or had no room for it. dropped: too many
were under way."""
ReadWhole = Callable[[bytes, str, Any], list[Event]]

READERS: Mapping[str, ReadWhole] = {
    "chat.completions": openai_reader.read_whole,
    "completions": openai_reader.read_whole,
    "messages": lambda body, target, request: messages_reader.read_whole(body, target),
    "responses": lambda body, target, request: responses_reader.read_events(body, target),
}
"""Kinds of requests that have shadows, and what reads their whole answers."""


class Given(NamedTuple):
    """A complete answer that a caller was given."""

    row: ExchangeRow
    last: bytes
    """The whole answer, or the last events of a stream."""
    pieces: Sequence[bytes] = ()
    """Of a stream, from its beginning, perhaps not to its end."""


def result_of(comparison: Comparison) -> Result:
    """Same: the same text but for its spacing and upper case, the same calls of tools, the same end."""
    if comparison.error:
        return "failed"
    alike = comparison.similarity == 1.0 and comparison.same_tool_calls and comparison.same_finish_reason
    return "same" if alike else "different"


def said_by_given(kind: Kind, request: Any, given: Given) -> Said:
    """What the caller was told. Of an answer that was too long to be kept whole, as far as it was."""
    row = given.row
    events: list[Event] = []
    target = row.target or "target"
    with suppress(OutpostError):
        if not row.stream:
            events = READERS[kind.name](given.last, target, request)
        elif kind.make_reader is not None:
            reader = kind.make_reader(target, request)
            for piece in (*given.pieces, given.last):
                events += reader.feed(piece) if piece else []
    told = heard(events)
    if not told[2] and row.finish_reasons:
        told = (told[0], told[1], row.finish_reasons[0])
    return Said(
        *told,
        ttft_s=row.ttft_s if row.stream else None,
        seconds=row.duration_s,
        completion_tokens=row.completion_tokens,
        cost_nanousd=row.cost_nanousd,
    )


def heard(events: Iterable[Event]) -> tuple[str, tuple[tuple[str, str], ...], str]:
    """Text, calls of tools (name, arguments) and finish reason of the first choice."""
    text: list[str] = []
    calls: dict[int, list[str]] = {}
    reason = ""
    for event in events:
        if isinstance(event, Delta) and event.index == 0:
            text.append(event.text or event.refusal)
            for piece in event.tool_calls:
                call = calls.setdefault(piece.index, ["", ""])
                call[0] += piece.name
                call[1] += piece.arguments
        elif isinstance(event, Finished) and event.index == 0:
            reason = event.reason
    return "".join(text), tuple([(name, arguments) for name, arguments in calls.values()]), reason
