"""The sixteen public faults of providers, in every dialect, streamed and whole: nobody notices, or is told honestly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.behaviours import LONG_TEXT
from tests.faults.failover import FAULTS, MORE_FAULTS, QUICK_S, RETRIES, Bench, Case, Outcome, cases_of, settings_of
from tests.gateway import UpstreamThread, open_gateway

pytestmark = pytest.mark.timeout(240)

SAME = [("chat", ("openai", "openai")), ("messages", ("anthropic", "anthropic")), ("responses", ("openai", "openai"))]
"""Answers pass as bytes."""
OTHER = [("chat", ("anthropic", "gemini")), ("messages", ("openai", "cohere")), ("responses", ("bedrock", "anthropic"))]
"""Answers are translated."""
MIXED = [("chat", ("openai", "anthropic")), ("messages", ("anthropic", "openai")), ("responses", ("openai", "gemini"))]
"""The primary's pass as bytes, and the fallback's are translated."""
CASES = [
    *cases_of(FAULTS, [*SAME, *OTHER]),
    *cases_of(MORE_FAULTS, [*SAME, *MIXED]),
    *cases_of({name: FAULTS[name] for name in ("cut-at-two-thirds", "stall", "fallback-rejects-prefill")}, MIXED),
]
RESCUED = [case for case in CASES if case.table.error is None and case.fault not in ("flapping-primary", "accounting")]


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with UpstreamThread() as upstream:
        settings = settings_of(CASES, upstream)
        # One that comes and goes is asked again and again by its test.
        once = [case for case in CASES if case.fault != "flapping-primary"]
        with (
            open_gateway(tmp_path_factory.mktemp("failover"), settings) as gateway,
            Bench(gateway, upstream).ahead(request, once) as bench,
        ):
            yield bench


def named(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def check_rescued(bench: Bench, case: Case, outcome: Outcome) -> None:
    """The whole answer, each word once, after few attempts, in little time; and whoever gave it is named."""
    assert outcome.text == LONG_TEXT
    primary, fallback = bench.seen(case)
    assert 1 <= len(primary) + len(fallback) <= RETRIES + 1
    assert outcome.took_s < QUICK_S
    row = bench.row(outcome)
    assert (row["outcome"], row["status"], row["error_code"]) == ("completed", 200, None)
    assert len(row["attempts"]) == len(primary) + len(fallback)
    assert [attempt["outcome"] for attempt in row["attempts"][:-1]] == ["failed"] * (len(row["attempts"]) - 1)
    assert row["attempts"][-1]["outcome"] == "completed"
    assert row["target"] == row["attempts"][-1]["target"]
    named = outcome.headers["x-outpost-target"]
    told = int(outcome.headers["x-outpost-attempts"])
    # The headers of a stream are sent with its first bytes: they tell of the attempt that gave these.
    assert named == row["attempts"][told - 1]["target"]
    assert told == len(row["attempts"]) or outcome.stream


@named(RESCUED)
def test_is_rescued(bench: Bench, case: Case) -> None:
    check_rescued(bench, case, bench.ask(case))


@named([case for case in CASES if case.table.error is not None])
def test_is_a_clean_error(bench: Bench, case: Case) -> None:
    outcome = bench.ask(case)
    assert case.table.error is not None
    status, code = case.table.error
    assert outcome.status == status
    assert outcome.headers["content-type"] == "application/json"
    error = case.dialect.error(outcome.json)
    if case.inbound == "messages":
        assert error["type"] == "invalid_request_error"
    else:
        assert (error["code"], error["type"]) == (code, "invalid_request_error")
    primary, fallback = bench.seen(case)
    assert (len(primary), len(fallback)) == (1, 0), "to ask elsewhere would go round the filter"
    row = bench.row(outcome)
    assert (row["status"], row["error_code"], len(row["attempts"])) == (status, code, 1)
    assert outcome.took_s < QUICK_S


@named([case for case in CASES if case.fault == "flapping-primary"])
def test_a_primary_that_comes_and_goes_is_not_noticed(bench: Bench, case: Case) -> None:
    for number in range(len(case.table.primary) + 2):
        before = sum(map(len, bench.seen(case)))
        outcome = bench.ask(case)
        assert outcome.text == LONG_TEXT, number
        assert sum(map(len, bench.seen(case))) - before <= RETRIES + 1
        assert outcome.took_s < QUICK_S


@named([case for case in CASES if case.fault == "accounting"])
def test_each_attempt_is_accounted_to_who_did_the_work(bench: Bench, case: Case) -> None:
    outcome = bench.ask(case)
    check_rescued(bench, case, outcome)
    row = bench.row(outcome)
    failed, completed = row["attempts"]
    providers = [attempt["target"].partition("/") for attempt in row["attempts"]]
    assert [model for _, _, model in providers] == [case.primary, case.fallback]
    assert failed["error_code"].startswith("upstream_")
    # What the primary did of the answer before it broke has cost its tokens; a whole answer that broke says nothing.
    assert failed["completion_tokens"] > 0 or not case.stream
    assert completed["completion_tokens"] > 0
    assert completed["prompt_tokens"] > 0
    if not case.stream:
        assert (row["prompt_tokens"], row["completion_tokens"]) == (
            completed["prompt_tokens"],
            completed["completion_tokens"],
        )
        assert outcome.json["model"] in ("upstream-model", case.fallback), "the caller sees which model answered"
