"""A gateway with two providers for each case of a failover, and what has to come out of it.

Every case has providers and models of its own, so that no breaker, cool-down or average of one tells in another.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.fakes.replies import Seen
from tests.faults.inbound import INBOUND, Heard, Inbound
from tests.gateway import Gateway, UpstreamThread

DEADLINES = {"connect": "2s", "first_token": "2s", "idle": "2s", "total": "15s", "whole": "2s"}
RETRIES = 2
QUICK_S = 10.0
"""Longest that a rescue may take on a busy machine: twice a deadline of 2 s, a pause of up to 1 s, and much slack."""
PROMPT = "Recite the alphabet of the radio."
KEY = {"env": "FAKE_UPSTREAM_KEY"}

PROVIDERS: dict[str, Mapping[str, Any]] = {
    "openai": {"kind": "openai", "base_url": "/v1", "api_key": KEY},
    "anthropic": {"kind": "anthropic", "base_url": "/v1", "api_key": KEY},
    "gemini": {"kind": "gemini", "base_url": "/v1beta", "api_key": KEY},
    "bedrock": {"kind": "bedrock", "base_url": "", "api_key": KEY, "region": "eu-central-1"},
    "cohere": {"kind": "cohere", "base_url": "/v2", "api_key": KEY},
}


@dataclass(frozen=True)
class Fault:
    """What the primary does (behaviours of the fake upstream, request by request), and what is to come of it."""

    primary: tuple[str, ...]
    fallback: str = "long"
    whole_too: bool = True
    """Whether a whole answer can have it."""
    error: tuple[int, str] | None = None
    """Status and code of a clean error; None: it is rescued."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the fallback as a target."""


FAULTS: dict[str, Fault] = {
    "429-with-retry-after": Fault(("long-429-after",)),
    "429-without-retry-after": Fault(("long-429",)),
    "500-once": Fault(("long-500", "long")),
    "503-for-ever": Fault(("long-503",)),
    "reset-before-headers": Fault(("long-reset-first",)),
    "no-answer-at-all": Fault(("long-silent",)),
    "slow-first-token": Fault(("long-slow",)),
    "cut-at-two-thirds": Fault(("long-cut",)),
    "stall": Fault(("long-stall",)),
    "malformed-chunk": Fault(("long-malformed",)),
    "missing-end-marker": Fault(("long-no-marker",)),
    "context-exceeded": Fault(("long-context",)),
    "content-filter": Fault(("long-filtered",), error=(400, "content_filter")),
    "fallback-rejects-prefill": Fault(("long-cut",), "long-no-prefill", options={"prefill": True}),
    "flapping-primary": Fault(("long-503", "long", "long-cut", "long", "long-503", "long-429")),
    "accounting": Fault(("long-cut",)),
}
"""The sixteen that gateways are publicly measured by."""

MORE_FAULTS: dict[str, Fault] = {
    "closed-before-headers": Fault(("long-closed",)),
    "reset-at-two-thirds": Fault(("long-reset",)),
    "bad-http-at-two-thirds": Fault(("long-bad-chunk",)),
    "cut-after-one-word": Fault(("long-cut-early",), whole_too=False),
    "end-marker-never-comes": Fault(("long-endless",), whole_too=False),
    "empty-answer": Fault(("long-empty",)),
    "slices": Fault(("long-slices",), whole_too=False),
    "comments": Fault(("long-comments",), whole_too=False),
    "cut-and-the-fallback-repeats": Fault(("long-cut",), "long-repeat", options={"prefill": False}),
    "cut-and-the-fallback-is-told-to-go-on": Fault(("long-cut",), "long", options={"prefill": False}),
    "both-break": Fault(("long-cut", "long"), "long-cut-early"),
}


@dataclass(frozen=True)
class Case:
    fault: str
    inbound: str
    kinds: tuple[str, str]
    """Of the primary provider and of the fallback."""
    stream: bool
    rescue: str = "resume"

    @property
    def name(self) -> str:
        way = "stream" if self.stream else "whole"
        return f"{self.fault}.{self.inbound}.{'-'.join(self.kinds)}.{way}.{self.rescue}"

    @property
    def table(self) -> Fault:
        return FAULTS.get(self.fault) or MORE_FAULTS[self.fault]

    @property
    def dialect(self) -> Inbound:
        return INBOUND[self.inbound]

    @property
    def primary(self) -> str:
        """The primary's model at the fake."""
        return f"{self.table.primary[0]}~{self.name}~1"

    @property
    def fallback(self) -> str:
        return f"{self.table.fallback}~{self.name}~2"


def cases_of(
    faults: Mapping[str, Fault], pairs: Iterable[tuple[str, tuple[str, str]]], *, rescue: str = "resume"
) -> list[Case]:
    """Every fault for every pair of an inbound dialect and two kinds of providers, streamed and whole."""
    return [
        Case(name, inbound, kinds, stream, rescue)
        for name, fault in faults.items()
        for inbound, kinds in pairs
        for stream in ((True, False) if fault.whole_too else (True,))
    ]


def settings_of(cases: Iterable[Case], upstream: UpstreamThread) -> dict[str, Any]:
    """Two providers and a route for each case; the fake is told what the models do."""
    root = upstream.fake.root
    providers, routes = [], []
    for number, case in enumerate(cases):
        targets = []
        for place, (kind, model) in enumerate(zip(case.kinds, (case.primary, case.fallback), strict=True)):
            made = dict(PROVIDERS[kind])
            name = f"p{number}-{place}"
            providers.append({**made, "name": name, "zone": "on_box", "base_url": root + made["base_url"]})
            targets.append({"provider": name, "model": model, **(case.table.options if place else {})})
        upstream.fake.script(case.primary, *case.table.primary)
        routes.append(
            {
                "model": case.name,
                "targets": targets,
                "retries": RETRIES,
                "rescue": case.rescue,
                "buffer_tokens": 8,
                "deadlines": DEADLINES,
            }
        )
    return {"deployments": [], "providers": providers, "routes": routes}


@dataclass
class Outcome:
    """What a client had of one request."""

    status: int
    headers: httpx.Headers
    took_s: float
    content: str
    dialect: Inbound
    stream: bool

    @property
    def heard(self) -> Heard:
        """Of a stream."""
        assert self.headers["content-type"].split(";")[0] == "text/event-stream", self.content
        return self.dialect.hear(self.content)

    @property
    def json(self) -> dict[str, Any]:
        """Of a whole answer, or an error."""
        read: dict[str, Any] = json.loads(self.content)
        return read

    @property
    def text(self) -> str:
        """The answer's text, which has to be complete."""
        assert self.status == 200, f"{self.status}: {self.content[:500]}"
        if not self.stream:
            return self.dialect.text(self.json)
        heard = self.heard
        assert heard.error is None, f"{heard.error} after {heard.text!r}"
        assert heard.clean, f"no clean end after {heard.text!r}"
        return heard.text


AT_ONCE = 6
"""Much of the time is deadlines that pass and pauses; what is measured for each case has slack for so many."""


class Bench:
    """Cases put to one gateway."""

    def __init__(self, gateway: Gateway, upstream: UpstreamThread) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self._begun: dict[str, Future[Outcome]] = {}

    @contextmanager
    def ahead(self, request: pytest.FixtureRequest, cases: Iterable[Case]) -> Iterator[Bench]:
        """Ask for those of these cases that the module's tests were selected with, some at a time, before their tests
        do. A case has nothing to do with another one, so it is the same whenever it is asked."""
        found = [_params(item) for item in request.session.items if item.getparent(pytest.Module) is request.node]
        selected = {each["case"].name for each in found if "case" in each}
        pool = ThreadPoolExecutor(AT_ONCE, "ahead")
        try:
            self._begun = {case.name: pool.submit(self._ask, case) for case in cases if case.name in selected}
            yield self
        finally:
            pool.shutdown(cancel_futures=True)

    def ask(self, case: Case) -> Outcome:
        """The outcome; that of a case which is asked ahead for the first time."""
        begun = self._begun.pop(case.name, None)
        return begun.result() if begun is not None else self._ask(case)

    def _ask(self, case: Case) -> Outcome:
        dialect = case.dialect
        began = time.monotonic()
        with self.gateway.http(timeout=30.0) as http:
            answer = http.post(dialect.path, json=dialect.body(case.name, PROMPT, case.stream))
        took = time.monotonic() - began
        streamed = answer.headers["content-type"].startswith("text/event-stream")
        return Outcome(answer.status_code, answer.headers, took, answer.text, dialect, streamed)

    def seen(self, case: Case) -> tuple[list[Seen], list[Seen]]:
        """What primary and fallback were asked."""
        return self.upstream.fake.asked(case.primary), self.upstream.fake.asked(case.fallback)

    def row(self, outcome: Outcome) -> dict[str, Any]:
        """What is on record of it."""
        wanted = outcome.headers["x-request-id"]
        rows: list[dict[str, Any]] = []
        while True:
            page = self.gateway.rows(rows[-1]["seq"] if rows else None)
            rows += page
            if len(page) < 1000:
                break
        (row,) = [row for row in rows if row["id"] == wanted]
        return row


def _params(item: pytest.Item) -> Mapping[str, Any]:
    """With which a test is called."""
    return item.callspec.params if hasattr(item, "callspec") else {}
