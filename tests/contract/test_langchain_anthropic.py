"""LangChain's standard tests for chat models, through its Anthropic client, before a model that can do what they ask.

What is left out stands in `langchain_left_out` with its reason; `conftest.py` holds the run to its tables.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from tests.contract.able import Able
from tests.contract.langchain_left_out import ANTHROPIC_BEFORE_AN_ABLE_MODEL

LEFT_OUT = ANTHROPIC_BEFORE_AN_ABLE_MODEL


class TestUnits(ChatModelUnitTests):
    """What LangChain asks of the client alone, with what it takes to reach the gateway."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": "http://127.0.0.1:8080", "api_key": "op-any", "model": "able-anthropic"}


class TestOutpost(ChatModelIntegrationTests):
    """The properties say what the gateway can do."""

    @pytest.fixture(autouse=True)
    def _reach(self, able: Able, monkeypatch: pytest.MonkeyPatch) -> None:
        self._gateway = able.gateway
        # The suite takes its picture and its document from elsewhere; here nothing leaves the machine.
        monkeypatch.setattr(httpx, "get", lambda url, **_: httpx.Response(200, content=b"%PDF-1.4 or some picture"))

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "base_url": self._gateway.url,
            "api_key": self._gateway.user_key,
            "model": "able-anthropic",
            "max_tokens": 400,
            "max_retries": 0,
            "timeout": 30,
        }

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_pdf_inputs(self) -> bool:
        return True

    @property
    def supports_pdf_tool_message(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "able-openai"
