"""What becomes of a stream that breaks, by a route's `rescue`: never a clean end after a cut, whatever the dialect."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.behaviours import LONG_TEXT
from tests.faults.failover import MORE_FAULTS, QUICK_S, RETRIES, Bench, Case, Fault, settings_of
from tests.gateway import UpstreamThread, open_gateway

pytestmark = pytest.mark.timeout(240)

BROKEN = ("long-cut", "long-reset", "long-bad-chunk", "long-stall", "long-malformed")
"""After two thirds of the answer."""
BREAKS = {f"breaks-{name}": Fault((name,)) for name in BROKEN}
ENDS = {"breaks-both": Fault(("long-cut",), "long-503")}
"""There is nobody to go on."""
MORE_FAULTS.update(BREAKS | ENDS)
PAIRS = [
    ("chat", ("openai", "openai")),
    ("messages", ("anthropic", "anthropic")),
    ("responses", ("openai", "openai")),
    ("chat", ("anthropic", "openai")),
    ("messages", ("openai", "openai")),
    ("responses", ("gemini", "openai")),
]
TOLD = [
    Case(fault, inbound, kinds, True, rescue)
    for fault in BREAKS
    for inbound, kinds in PAIRS
    for rescue in ("off", "buffer")
] + [Case(fault, inbound, kinds, True, "resume") for fault in ENDS for inbound, kinds in PAIRS]
HIDDEN = [Case("cut-after-one-word", inbound, kinds, True, "buffer") for inbound, kinds in PAIRS]
UNHIDDEN = [Case("cut-after-one-word", inbound, kinds, True, "off") for inbound, kinds in PAIRS]
WHOLE = [
    Case(fault, inbound, kinds, False, "off")
    for fault in ("breaks-long-cut", "breaks-long-malformed")
    for inbound, kinds in PAIRS
]


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with UpstreamThread() as upstream:
        cases = [*TOLD, *HIDDEN, *UNHIDDEN, *WHOLE]
        settings = settings_of(cases, upstream)
        with (
            open_gateway(tmp_path_factory.mktemp("modes"), settings) as gateway,
            Bench(gateway, upstream).ahead(request, cases) as bench,
        ):
            yield bench


def named(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@named([*TOLD, *UNHIDDEN])
def test_a_stream_that_broke_says_so(bench: Bench, case: Case) -> None:
    outcome = bench.ask(case)
    assert outcome.status == 200
    heard = outcome.heard
    assert not heard.clean, "a cut stream ends cleanly"
    assert heard.error is not None
    assert heard.error["message"]
    assert heard.text, "the client had seen the beginning"
    assert LONG_TEXT.startswith(heard.text)
    assert outcome.took_s < QUICK_S
    primary, fallback = bench.seen(case)
    assert len(primary) + len(fallback) <= RETRIES + 1
    if case.rescue != "resume":
        assert (len(primary), len(fallback)) == (1, 0), "what the client has seen is not asked again"
    row = bench.row(outcome)
    assert (row["outcome"], row["status"]) == ("upstream_error", 200)
    assert row["error_code"]
    assert row["attempts"][0]["outcome"] == "failed"


@named(HIDDEN)
def test_a_stream_that_breaks_while_it_is_held_back_is_not_noticed(bench: Bench, case: Case) -> None:
    outcome = bench.ask(case)
    assert outcome.text == LONG_TEXT
    primary, fallback = bench.seen(case)
    assert (len(primary), len(fallback)) == (1, 1)
    assert outcome.headers["x-outpost-attempts"] == "2"
    assert outcome.headers["x-outpost-target"].endswith(case.fallback)


@named(WHOLE)
def test_a_whole_answer_that_breaks_is_asked_for_again(bench: Bench, case: Case) -> None:
    outcome = bench.ask(case)
    assert outcome.text == LONG_TEXT
    primary, fallback = bench.seen(case)
    assert (len(primary), len(fallback)) == (1, 1)
    assert outcome.headers["x-outpost-attempts"] == "2"
    assert outcome.headers["x-outpost-target"].endswith(case.fallback)
