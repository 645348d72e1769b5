"""LangChain's standard tests for chat models, through its OpenAI client, against the gateway and a real small model.

What is left out stands in `langchain_left_out` with its reason; `conftest.py` holds the run to its tables.
"""

from __future__ import annotations

import base64
from typing import Any

import openai
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.contract.langchain_left_out import OPENAI_BEFORE_A_SMALL_MODEL
from tests.gateway import CHAT, Gateway

pytestmark = pytest.mark.engine

LEFT_OUT = OPENAI_BEFORE_A_SMALL_MODEL


class TestOutpost(ChatModelIntegrationTests):
    """The properties say what the gateway can do."""

    @pytest.fixture(autouse=True)
    def _reach(self, gateway: Gateway, request: pytest.FixtureRequest) -> None:
        self._gateway = gateway
        # The texts of structured answers go round in circles at temperature 0, unless repetition costs something.
        structured = any(word in request.node.name for word in ("structured", "json"))
        self._sampling = {"temperature": 0, "frequency_penalty": 1 if structured else 0}

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            **self._sampling,
            "base_url": self._gateway.base_url,
            "api_key": self._gateway.user_key,
            "model": CHAT,
            "max_tokens": 400,
            # Off, a small model goes on calling until it may not.
            "model_kwargs": {"parallel_tool_calls": False},
            "stream_usage": True,
            "max_retries": 0,
            "timeout": 100,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "second-name"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "source_type": "base64", "mime_type": "image/png", "data": base64.b64encode(b"png").decode()},
        {"type": "audio", "source_type": "base64", "mime_type": "audio/wav", "data": base64.b64encode(b"wav").decode()},
        {
            "type": "file",
            "source_type": "base64",
            "mime_type": "application/pdf",
            "data": base64.b64encode(b"pdf").decode(),
            "filename": "a.pdf",
        },
    ],
    ids=lambda part: part["type"],
)
def test_media_are_refused(gateway: Gateway, part: dict[str, Any]) -> None:
    model = ChatOpenAI(base_url=gateway.base_url, api_key=gateway.user_key, model=CHAT, max_retries=0)
    with pytest.raises(openai.BadRequestError) as refusal:
        model.invoke([HumanMessage(content=[{"type": "text", "text": "What is this?"}, part])])
    assert refusal.value.code == "unsupported_parameter"
    assert refusal.value.param == "messages[0].content[1]"
