"""What is left out of LangChain's standard tests, and why, for each client and each model behind the gateway.

`conftest.py` holds the runs to these tables: what is skipped has to stand here, and what stands here has to be skipped.
"""

from __future__ import annotations

from typing import NamedTuple

from langchain_core.exceptions import OutputParserException


class LeftOut(NamedTuple):
    """Tests by their names."""

    skipped: dict[str, str]
    """Skipped by the suite itself, since the properties of the test class say so; and why they do."""
    failing: dict[str, tuple[type[Exception], str]]
    """Run, and allowed to fail in one way; and why."""


_RECORDED = {"test_stream_time": "plays recorded answers back; nothing is recorded here"}
_NOT_OPENAIS = {"test_anthropic_inputs": "blocks of Anthropic's dialect do not belong into OpenAI's"}
_TEXT_ALONE = "the model reads text only"

OPENAI_BEFORE_A_SMALL_MODEL = LeftOut(
    {
        **_RECORDED,
        **_NOT_OPENAIS,
        "test_image_inputs": f"{_TEXT_ALONE}; see test_media_are_refused",
        "test_pdf_inputs": f"{_TEXT_ALONE}; see test_media_are_refused",
        "test_audio_inputs": f"{_TEXT_ALONE}; see test_media_are_refused",
        "test_image_tool_message": _TEXT_ALONE,
        "test_pdf_tool_message": _TEXT_ALONE,
    },
    {
        # The answer is JSON, but a model of 135M parameters judges badly.
        "test_json_mode": (
            OutputParserException,
            "json_object promises JSON, not which keys; the model nests one key in the other",
        ),
    },
)
OPENAI_BEFORE_AN_ABLE_MODEL = LeftOut(
    {
        **_RECORDED,
        **_NOT_OPENAIS,
        "test_audio_inputs": "see test_audio: the format that the suite sends is none of OpenAI's",
        "test_pdf_tool_message": "OpenAI's tool messages hold text and images",
        "test_image_tool_message": "OpenAI's own API takes text there",
    },
    {},
)
ANTHROPIC_BEFORE_AN_ABLE_MODEL = LeftOut(
    {
        **_RECORDED,
        "test_audio_inputs": "Anthropic's API takes no sound",
        "test_json_mode": "Anthropic's API has no such mode",
        "test_init_from_env": "the suite leaves it to subclasses",
    },
    {
        "test_serdes": (
            AssertionError,
            "compares with a snapshot of the client's package, which does not come with it",
        ),
    },
)
