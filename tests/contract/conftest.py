"""What the contract tests share, and the rule that nothing of LangChain's suite is left out in silence."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator
from typing import Any

import httpx
import pytest

from tests.contract.able import Able, open_able
from tests.contract.ask import CHAT_PATH, whole
from tests.contract.langchain_left_out import LeftOut
from tests.contract.wrong import VALID
from tests.gateway import Gateway


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    """An HTTP client of the session's gateway, with an admin's key."""
    with gateway.http() as client:
        yield client


@pytest.fixture(scope="session")
def able(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Able]:
    """The gateway before the able model, for the whole session."""
    with open_able(tmp_path_factory.mktemp("able")) as able:
        yield able


@pytest.fixture
def healthy_after(gateway: Gateway) -> Iterator[None]:
    """After each test the gateway is up, has logged no failure of its own, and its engine process is the same."""
    log, pids = len(gateway.log()), [replica["pid"] for replica in gateway.replicas()]
    yield
    with gateway.http() as http:
        assert http.get("/healthz").status_code == 200
        assert http.get("/readyz").status_code == 200
        whole(http, CHAT_PATH, VALID[CHAT_PATH])
    assert '"exception"' not in gateway.log()[log:]
    assert [replica["pid"] for replica in gateway.replicas()] == pids


def _left_out(item: pytest.Item) -> LeftOut | None:
    """What may be left out, if `item` is of LangChain's suite."""
    table: LeftOut | None = getattr(getattr(item, "module", None), "LEFT_OUT", None)
    return None if getattr(item, "cls", None) is None else table


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        table = _left_out(item)
        if table is None:
            continue
        if declared := table.failing.get(item.originalname):  # type: ignore[attr-defined]
            # Not strict: another processor rounds differently, and a model's judgement turns on that. Anything else
            # that goes wrong fails the test.
            raises, reason = declared
            item.add_marker(pytest.mark.xfail(raises=raises, reason=reason, strict=False))
        if inspect.iscoroutinefunction(item.obj):  # type: ignore[attr-defined]
            # One loop for all: LangChain's client keeps its connections between tests.
            item.add_marker(pytest.mark.asyncio(loop_scope="module"), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    report = yield
    table = _left_out(item)
    if table is None or call.when != "call" or hasattr(report, "wasxfail"):
        return report
    name = item.originalname  # type: ignore[attr-defined]
    if report.skipped and name not in table.skipped:
        report.outcome, report.longrepr = (
            "failed",
            f"{name} was skipped, and its table does not say why: {report.longrepr}",
        )
    elif report.passed and name in table.skipped:
        report.outcome, report.longrepr = "failed", f"{name} ran and passed; take it out of its table"
    return report
