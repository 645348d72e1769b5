"""Amazon Bedrock's Converse, asked and read: one request form for the models of many makers. Pure."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from appliance.dialects import chat
from appliance.dialects.answer import Ask
from appliance.dialects.bedrock.answer import ConverseReader, read_whole
from appliance.dialects.bedrock.families import family_of
from appliance.dialects.bedrock.frames import STREAM_TYPE
from appliance.dialects.bedrock.request import NO_NOTION, body_of
from appliance.dialects.claude import claude_of, unsampled
from appliance.dialects.wire import encode
from runtimes.engine import Event

FEATURES = frozenset(
    ("tools", "tool_images", "json_schema", "images", "files", "audio_input", "reasoning", "top_k", "prefill")
)
"""What Converse has a notion for; many a model has less, and a row of it says so."""


class Bedrock:
    """See `dialects.answer.Outbound`."""

    name = "bedrock"
    stream_type = STREAM_TYPE

    def unknown(self, model: str) -> frozenset[str]:
        """Fields that the model has no notion for, and without which it answers all the same."""
        family = family_of(model)
        return frozenset(NO_NOTION) | (unsampled(claude_of(model)) if family.anthropic else frozenset())

    def ask(self, request: Any, model: str, *, stream: bool) -> Ask:
        """`model`: an id of a model or an inference profile, or an ARN."""
        assert isinstance(request, chat.ChatRequest)
        body = encode(body_of(request, model))
        operation = "converse-stream" if stream else "converse"
        accept = STREAM_TYPE if stream else "application/json"
        # Of an ARN's slashes none is a border of the path.
        return Ask(f"model/{quote(model, safe='')}/{operation}", body, {"Accept": accept})

    def reader(self, target: str, request: Any) -> ConverseReader:
        return ConverseReader(target)

    def read_whole(self, body: bytes, target: str, request: Any) -> list[Event]:
        return read_whole(body, target)
