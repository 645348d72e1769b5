"""LangChain's standard tests for chat models, through its OpenAI client, before a model that can do what they ask.

test_langchain.py has the same before a real small model. What is left out stands in `langchain_left_out`.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.contract.able import Able
from tests.contract.langchain_left_out import OPENAI_BEFORE_AN_ABLE_MODEL

LEFT_OUT = OPENAI_BEFORE_AN_ABLE_MODEL


class TestOutpost(ChatModelIntegrationTests):
    """The properties say what the gateway can do."""

    @pytest.fixture(autouse=True)
    def _reach(self, able: Able, monkeypatch: pytest.MonkeyPatch) -> None:
        self._gateway = able.gateway
        # The suite takes its picture and its document from elsewhere; here nothing leaves the machine.
        monkeypatch.setattr(httpx, "get", lambda url, **_: httpx.Response(200, content=b"%PDF-1.4 or some picture"))

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "base_url": self._gateway.base_url,
            "api_key": self._gateway.user_key,
            "model": "able-openai",
            "max_tokens": 400,
            "stream_usage": True,
            "max_retries": 0,
            "timeout": 30,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_pdf_inputs(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "able-anthropic"
