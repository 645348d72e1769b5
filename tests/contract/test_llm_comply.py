"""llm-comply, an outside judge of chat completions: every case of its suite against a real model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import llm_comply
import pytest
from llm_comply.config import ComplianceConfig
from llm_comply.http import make_request
from llm_comply.result import TestStatus as Status  # under its own name pytest would take it for tests
from llm_comply.runner import TestRunner as Runner
from llm_comply.schema import SpecLoader
from llm_comply.test_case import TestCase as Case
from llm_comply.tests import get_tests

from tests.gateway import CHAT, Gateway

pytestmark = pytest.mark.engine

CASES = {case.id: case for case in get_tests("openai-chat")}
# A text model cannot do these; until a model can, they are refused by the name of the field.
REFUSED = {
    "chat-image-input": "messages[0].content[1]",
    "chat-reasoning-summary": "reasoning_effort",
}


def greedy(case: Case) -> Case:
    """The same case at temperature 0: sampled freely, one answer in fifteen of so small a model has no end.

    A call of a tool is penalised for saying the same again, which on some processors it does without end."""
    fields = {"temperature": 0, **({"frequency_penalty": 1.0} if case.id == "chat-tool-calling" else {})}
    return dataclasses.replace(case, build_request=lambda config: {**case.build_request(config), **fields})


@pytest.fixture
def config(gateway: Gateway) -> ComplianceConfig:
    return ComplianceConfig(base_url=gateway.base_url, api_key=gateway.user_key, model=CHAT, timeout=100.0)


def test_the_suite_is_the_one_that_was_read() -> None:
    assert set(REFUSED) < set(CASES), "llm-comply has renamed its cases; look at what changed"
    assert len(CASES) >= 9


@pytest.mark.parametrize("name", [name for name in CASES if name not in REFUSED])
def test_passes_without_a_warning(config: ComplianceConfig, name: str) -> None:
    spec = Path(llm_comply.__file__).parent / "specs" / "openai_chat.json"
    result = Runner(config, [], SpecLoader(str(spec))).run_one(greedy(CASES[name]))
    assert (result.status, result.errors, result.warnings) == (Status.PASSED, [], [])


@pytest.mark.parametrize(("name", "field"), REFUSED.items())
def test_what_a_text_model_cannot_do_is_refused_by_name(config: ComplianceConfig, name: str, field: str) -> None:
    case = CASES[name]
    status, answer, _ = make_request(config, case.endpoint, case.build_request(config), streaming=case.streaming)
    assert status == 400
    error = answer["error"]
    assert (error["code"], error["param"], error["type"]) == ("unsupported_parameter", field, "invalid_request_error")
    assert CHAT in error["message"]
