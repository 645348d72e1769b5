"""What models thought, on its way through dialects that have other notions of it. Pure.

In the canonical form it is `reasoning_details`: texts, which may be signed, and data that only its maker can read. A
maker refuses a request with thoughts in it that are not its own, and nothing is lost without them: no model can use
what another one thought. So each outbound sends on what comes from its own maker and leaves out all else, silently.

Whose it is, the data tells: what is not Anthropic's is marked at its beginning on its way to the client, so that it
finds its way back. Anthropic's own bears no mark, since its clients and its targets exchange it unread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

GEMINI = "gemini:"
"""Before a signature of Gemini's; see gemini.signatures."""
RESPONSES = "openai-responses:"
"""Before `id:content` of an item of reasoning of OpenAI's; see responses.reasoning."""
DETAILS = "reasoning-details:"
"""Before `format:id:data` of a block that a target of OpenAI's dialect has given with a format of its own."""
CARRIED_SIGNATURE = "outpost-signature:"
CARRIED_DATA = "outpost-data:"
"""Before what stands in an item of reasoning for clients of Responses, although OpenAI has not made it."""

_MARKS = (GEMINI, RESPONSES, DETAILS, CARRIED_SIGNATURE, CARRIED_DATA)


class Signed(NamedTuple):
    """One thought as Anthropic's models give it: a text with its signature (the text is empty where it is not shown),
    or data alone."""

    text: str
    signature: str
    data: str


def marked(value: str) -> bool:
    """Whether a signature or data bears another maker's mark than Anthropic's, which has none."""
    return value.startswith(_MARKS)


def merged(details: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The blocks, each in one piece: clients give the pieces of a stream back as they came, with the `index` of the
    block that they belong to."""
    found: list[dict[str, Any]] = []
    open: dict[tuple[str, int], dict[str, Any]] = {}
    for each in details or ():
        kind, at = each.get("type"), each.get("index")
        field = _TEXTS.get(kind) if isinstance(kind, str) else None
        if field is None or not isinstance(kind, str) or not isinstance(at, int):
            found.append(each)
            continue
        before = open.get((kind, at))
        if before is None or before.get("signature"):  # what is signed is complete
            before = open[kind, at] = dict(each)
            found.append(before)
            continue
        text = _text(before.get(field)) + _text(each.get(field))
        before |= {name: value for name, value in each.items() if value is not None}
        before[field] = text
    return found


_TEXTS = {"reasoning.text": "text", "reasoning.summary": "summary"}
"""Blocks that come in pieces, and what of them does."""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def anthropics(details: Sequence[dict[str, Any]] | None) -> Iterator[Signed]:
    """Those of the blocks that Anthropic's models can trust."""
    for each in merged(details):
        made_for = each.get("format")
        if isinstance(made_for, str) and not made_for.startswith("anthropic"):
            continue
        text, signature, data = (_text(each.get(name)) for name in ("text", "signature", "data"))
        if each.get("type") == "reasoning.text" and signature and not marked(signature):
            yield Signed(text, signature, "")
        elif each.get("type") == "reasoning.encrypted" and data and not marked(data):
            yield Signed("", "", data)


def unmarked(details: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The blocks as a target takes them that knows them by their `format`, or by none: each in one piece, those with a
    mark of `packed` as they came from there, without those of makers that are asked in another way."""
    found: list[dict[str, Any]] = []
    for each in merged(details):
        field = "data" if each.get("type") == "reasoning.encrypted" else "signature"
        value = _text(each.get(field))
        if value.startswith(DETAILS):
            made_for, _, rest = value[len(DETAILS) :].partition(":")
            id, _, inner = rest.partition(":")
            found.append({**each, field: inner, "format": made_for, **({"id": id} if id else {})})
        elif not marked(value):
            found.append(each)
    return found


def packed(data: str, made_for: str, id: str) -> str:
    """Data or a signature of a block that says for whom it is, so that `unmarked` can say so again. What is Anthropic's
    stays as it is, wherever it came from."""
    if not data or not made_for or made_for.startswith("anthropic") or ":" in made_for or ":" in id:
        return data
    return f"{DETAILS}{made_for}:{id}:{data}"
