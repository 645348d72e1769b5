"""instructor through the gateway: typed answers by tools, by schema and by JSON, whole and in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import instructor
import openai
import pytest
from instructor.core import InstructorRetryException
from pydantic import BaseModel

from tests.contract.able import Able, lenient, route

KINDS = ("openai", "anthropic", "gemini", "bedrock", "cohere")
OPENAI_MODES = (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA)
ANTHROPIC_MODES = (instructor.Mode.ANTHROPIC_TOOLS,)
PROMPT: Any = [{"role": "user", "content": "A trip to Rome for 3 days"}]


class Trip(BaseModel):
    """A journey."""

    city: str
    days: int


ROME = Trip(city="Rome", days=3)


def openai_client(able: Able, mode: instructor.Mode) -> Iterator[Any]:
    with able.gateway.openai() as client:
        yield instructor.from_openai(client, mode=mode)


@pytest.mark.parametrize("mode", OPENAI_MODES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_openais_client(able: Able, mode: instructor.Mode, kind: str) -> None:
    for client in openai_client(able, mode):
        made = client.chat.completions.create(
            model=lenient(kind), messages=PROMPT, response_model=Trip, max_retries=0, max_tokens=200
        )
        assert made.model_dump() == ROME.model_dump()
        made, raw = client.chat.completions.create_with_completion(
            model=lenient(kind), messages=PROMPT, response_model=Trip, max_retries=0, max_tokens=200
        )
        assert made.model_dump() == ROME.model_dump()
        assert raw.usage.total_tokens > 0


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_in_pieces(able: Able, mode: instructor.Mode, kind: str) -> None:
    for client in openai_client(able, mode):
        parts = list(
            client.chat.completions.create_partial(
                model=lenient(kind), messages=PROMPT, response_model=Trip, max_retries=0, max_tokens=200
            )
        )
        # Gemini gives the arguments of a call in one piece.
        assert len(parts) > 1 or (kind, mode) == ("gemini", instructor.Mode.TOOLS)
        assert parts[-1].model_dump() == ROME.model_dump()


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_in_pieces(able: Able, kind: str) -> None:
    for client in openai_client(able, instructor.Mode.TOOLS):
        trips = list(
            client.chat.completions.create_iterable(
                model=lenient(kind), messages=PROMPT, response_model=Trip, max_retries=0, max_tokens=200
            )
        )
        assert [trip.model_dump() for trip in trips] == [ROME.model_dump()]


@pytest.mark.parametrize("mode", ANTHROPIC_MODES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_anthropics_client(able: Able, mode: instructor.Mode, kind: str) -> None:
    with able.anthropic() as plain:
        client = instructor.from_anthropic(plain, mode=mode)
        made = client.messages.create(
            model=lenient(kind), max_tokens=300, messages=PROMPT, response_model=Trip, max_retries=0
        )
        assert made.model_dump() == ROME.model_dump()
        parts = list(
            client.messages.create_partial(
                model=lenient(kind), max_tokens=300, messages=PROMPT, response_model=Trip, max_retries=0
            )
        )
        assert parts[-1].model_dump() == ROME.model_dump()


@pytest.mark.parametrize("kind", ["anthropic", "bedrock"])
def test_what_a_kind_does_not_know_is_refused_by_name(able: Able, kind: str) -> None:
    for client in openai_client(able, instructor.Mode.JSON):
        with pytest.raises(InstructorRetryException) as refusal:
            client.chat.completions.create(model=route(kind), messages=PROMPT, response_model=Trip, max_retries=0)
    cause: Any = refusal.value.__cause__
    while not isinstance(cause, openai.BadRequestError):
        cause = cause.__cause__ or cause.__context__
    assert (cause.param, cause.code) == ("response_format", "unsupported_parameter")
