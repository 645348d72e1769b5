"""llmock as the upstream, for every provider that it mimics: it breaks answers and judges how the gateway takes it.

Its verdict has no finding, not even a warning, and the gateway's client has the answer that it would have had.

Most of the time is the gateway's pauses before it asks again. So the cases run in lanes, which go on at the same time:
one for each provider and client, with an llmock of its own, since that has one journal and one list of what to do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from llmock.journal import RequestRecord
from llmock.pytest_plugin import LLMock
from llmock.testing import BASE_PATHS, LLMockServer
from llmock.verdict import judge

from tests.faults.failover import KEY
from tests.faults.inbound import INBOUND, Inbound
from tests.gateway import Gateway, open_gateway

pytestmark = pytest.mark.timeout(240)

VERSIONS = {"anthropic": "/v1", "gemini": "/v1beta", "cohere": "/v2"}
"""What the gateway has in an address beside that which llmock's clients have."""
CLIENTS = {**dict.fromkeys(BASE_PATHS, ("chat",)), "openai": ("chat", "responses"), "anthropic": ("chat", "messages")}
SHORT = {"connect": "5s", "first_token": "2s", "idle": "2s", "total": "30s"}
LONG = {"connect": "5s", "first_token": "15s", "idle": "15s", "total": "30s"}
"""Where nothing is late on purpose, a machine that is busy is no reason to ask again."""
RETRIES = 3


@dataclass(frozen=True)
class Trouble:
    """What llmock is told to do; how many requests that takes in all, and the status in the end."""

    make: Callable[[LLMock, str], Any]
    attempts: int = 2
    status: int = 200
    streams: bool = True
    wholes: bool = True
    targets: int = 1
    """How many of the route lead to it: who does not answer in time is not asked again, another one is."""


TROUBLES: dict[str, Trouble] = {
    "none": Trouble(lambda mock, name: None, attempts=1),
    "500-once": Trouble(lambda mock, name: mock.fail(500, provider=name)),
    "503-twice": Trouble(lambda mock, name: mock.fail(503, times=2, retry_after=0.4, provider=name), attempts=3),
    "529-thrice": Trouble(lambda mock, name: mock.fail(529, times=3, retry_after=0.4, provider=name), attempts=4),
    "408-once": Trouble(lambda mock, name: mock.fail(408, provider=name)),
    "409-once": Trouble(lambda mock, name: mock.fail(409, provider=name)),
    "429-with-retry-after": Trouble(lambda mock, name: mock.rate_limit(retry_after=1, provider=name)),
    "429-twice-with-retry-after": Trouble(
        lambda mock, name: mock.rate_limit(times=2, retry_after=0.6, provider=name), attempts=3
    ),
    "disconnect": Trouble(lambda mock, name: mock.disconnect(after_chunks=3, provider=name), wholes=False),
    "truncate": Trouble(lambda mock, name: mock.truncate(after_chunks=3, provider=name), wholes=False),
    # Slowly, so that it notices that the connection is closed before it has sent the rest.
    "malformed": Trouble(lambda mock, name: mock.corrupt(after_chunks=3, provider=name).pace(20), wholes=False),
    "stall": Trouble(lambda mock, name: mock.stall(after_chunks=3, seconds=30, provider=name), wholes=False, targets=2),
    "slow-first-token": Trouble(lambda mock, name: mock.slow_first_token(20, provider=name), wholes=False, targets=2),
    "400-for-ever": Trouble(lambda mock, name: mock.fail(400, times=None, provider=name), attempts=1, status=400),
    "422-for-ever": Trouble(lambda mock, name: mock.fail(422, times=None, provider=name), attempts=1, status=400),
    "401-for-ever": Trouble(lambda mock, name: mock.fail(401, times=None, provider=name), attempts=1, status=502),
    "403-for-ever": Trouble(lambda mock, name: mock.fail(403, times=None, provider=name), attempts=1, status=502),
    "404-for-ever": Trouble(lambda mock, name: mock.fail(404, times=None, provider=name), attempts=1, status=502),
    "context": Trouble(lambda mock, name: mock.context_overflow(times=None, provider=name), attempts=1, status=400),
    "outage": Trouble(
        lambda mock, name: mock.fail(503, times=None, retry_after=0.4, provider=name), attempts=RETRIES + 1, status=503
    ),
}


@dataclass(frozen=True)
class Case:
    provider: str
    trouble: str
    client: str
    stream: bool

    @property
    def name(self) -> str:
        """Of its route and of its provider."""
        return f"{self.provider}-{self.trouble}-{self.client}-{'stream' if self.stream else 'whole'}"

    @property
    def lane(self) -> tuple[str, str]:
        return self.provider, self.client


CASES = [
    Case(provider, trouble, client, stream)
    for provider in BASE_PATHS
    for trouble, its in TROUBLES.items()
    for client in CLIENTS[provider]
    for stream in (False, True)
    if (its.streams if stream else its.wholes)
]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[tuple[str, str], LLMockServer]]:
    """One for each lane."""
    with ExitStack() as stack:
        yield {lane: stack.enter_context(LLMockServer()) for lane in dict.fromkeys(case.lane for case in CASES)}


@pytest.fixture(scope="module")
def gateway(
    servers: dict[tuple[str, str], LLMockServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """Each case has a provider of its own, since the gateway keeps away from one that fails."""
    providers, routes = [], []
    for case in CASES:
        base = servers[case.lane].base_url(case.provider) + VERSIONS.get(case.provider, "")
        names = [f"{case.name}-{number}" for number in range(TROUBLES[case.trouble].targets)]
        providers += [
            {"name": name, "kind": case.provider, "zone": "on_box", "base_url": base, "api_key": KEY} for name in names
        ]
        routes.append(
            {
                "model": case.name,
                "targets": [{"provider": name, "model": "mock-model", "prefill": False} for name in names],
                "retries": RETRIES,
                "rescue": "resume",
                "deadlines": SHORT if TROUBLES[case.trouble].targets > 1 else LONG,
            }
        )
    settings = {"deployments": [], "providers": providers, "routes": routes}
    with open_gateway(tmp_path_factory.mktemp("llmock"), settings) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def judged(
    request: pytest.FixtureRequest, servers: dict[tuple[str, str], LLMockServer], gateway: Gateway
) -> Iterator[dict[str, Future[None]]]:
    """What became of each case that was selected: its assertion, if that has failed."""
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    asked = {each["case"].name for each in params if isinstance(each.get("case"), Case)}
    with ExitStack() as stack:
        lanes = {lane: ThreadPoolExecutor(1) for lane in servers}
        for lane in lanes.values():
            stack.callback(lane.shutdown, cancel_futures=True)
        yield {
            case.name: lanes[case.lane].submit(check, gateway, LLMock(servers[case.lane]), case)
            for case in CASES
            if case.name in asked
        }


def ask(gateway: Gateway, dialect: Inbound, model: str, stream: bool) -> tuple[int, str]:
    """The status, and the text of an answer that has to be complete."""
    with gateway.http(timeout=60.0) as http:
        answer = http.post(dialect.path, json=dialect.body(model, "Tell me about the sea.", stream))
    if answer.status_code != 200:
        dialect.error(answer.json())
        return answer.status_code, ""
    if not stream:
        return 200, dialect.text(answer.json())
    heard = dialect.hear(answer.text)
    assert heard.error is None, f"{heard.error} after {heard.text!r}"
    assert heard.clean
    return 200, heard.text


def one_after_the_other(records: list[RequestRecord]) -> list[RequestRecord]:
    """The attempts of one request as they were. llmock takes a while to see that a connection has been closed; by then
    the next attempt may have begun, and would count as another request's."""
    ends = [record.started_at for record in records[1:]]
    return [
        dataclasses.replace(record, ended_at=min(record.ended_at, end))
        for record, end in zip(records, [*ends, float("inf")], strict=True)
    ]


def check(gateway: Gateway, mock: LLMock, case: Case) -> None:
    mock.reset()
    dialect, its = INBOUND[case.client], TROUBLES[case.trouble]
    its.make(mock, case.provider)
    status, text = ask(gateway, dialect, case.name, case.stream)
    requests = one_after_the_other([record for record in mock.requests if record.method == "POST"])
    verdict = judge(requests)
    told = (status, [(record.status, record.fault) for record in requests])
    assert not verdict.findings, f"{told}\n{verdict.render()}"
    assert (status, len(requests)) == (its.status, its.attempts)
    if status == 200:
        mock.reset()
        undisturbed = dataclasses.replace(case, trouble="none")
        assert ask(gateway, dialect, undisturbed.name, case.stream) == (200, text)
        assert len(text.split()) > 3


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_its_verdict_has_no_finding(judged: dict[str, Future[None]], case: Case) -> None:
    judged[case.name].result()


@pytest.mark.parametrize("provider", BASE_PATHS)
def test_every_provider_that_it_mimics_is_asked(provider: str) -> None:
    assert provider in {case.provider for case in CASES}
    assert len(BASE_PATHS) == 10, "llmock mimics others now; add them"
