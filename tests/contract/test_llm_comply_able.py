"""llm-comply, an outside judge: every case of its suites for the three dialects, before every kind of provider."""

from __future__ import annotations

from pathlib import Path

import llm_comply
import pytest
from llm_comply.config import ComplianceConfig
from llm_comply.result import TestStatus as Status  # under its own name pytest would take it for tests
from llm_comply.runner import TestRunner as Runner
from llm_comply.schema import SpecLoader
from llm_comply.tests import get_tests

from tests.contract.able import KINDS, Able

SUITES = {
    "openai-chat": ("openai_chat.json", "gpt-5"),
    "open-responses": ("openresponses.json", "gpt-5"),
    "anthropic": ("anthropic.json", "claude-sonnet-4-5"),
}
UNCOUNTED = {("chat-reasoning-summary", kind) for kind in ("bedrock", "cohere")}
"""These providers do not say how many tokens went into reasoning."""
CASES = [(suite, case.id) for suite in SUITES for case in get_tests(suite)]


def test_the_suites_are_those_that_were_read() -> None:
    assert [len(get_tests(suite)) for suite in SUITES] == [9, 13, 9], "llm-comply has other cases now; look at them"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("suite", "name"), CASES)
def test_passes(able: Able, suite: str, name: str, kind: str) -> None:
    spec, model = SUITES[suite]
    loader = SpecLoader(str(Path(llm_comply.__file__).parent / "specs" / spec))
    config = ComplianceConfig(
        base_url=able.gateway.base_url, api_key=able.gateway.user_key, model=f"{model}-{kind}", timeout=30.0
    )
    case = next(case for case in get_tests(suite) if case.id == name)
    result = Runner(config, [], loader).run_one(case)
    assert (result.status, result.errors) == (Status.PASSED, [])
    assert len(result.warnings) == ((name, kind) in UNCOUNTED)
