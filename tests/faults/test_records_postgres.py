"""The real gateway over a PostgreSQL that crashes: nobody gets an answer off the record, and it heals by itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import fake_routes
from tests.faults.test_records_faults import ask, check_healed, check_refused
from tests.gateway import ADMIN_KEY, UPSTREAM_KEY, USER_KEY, Gateway, GatewayFailed, UpstreamThread
from tests.postgres import PASSWORD, Cluster, find_binaries
from tests.telemetry.canaries import Hunt


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One of this test's own: others must not see it crash."""
    made = Cluster(find_binaries(os.environ))
    try:
        yield made
        made.stop()
        hunt = Hunt([PASSWORD, ADMIN_KEY, USER_KEY, UPSTREAM_KEY], forms=True)
        hunt.folder(made.data)
        hunt.check()
    finally:
        made.remove()


async def test_a_server_that_crashes(
    cluster: Cluster, new_gateway: Callable[..., Gateway], upstream: UpstreamThread
) -> None:
    url = cluster.url(cluster.new_database(), tcp=True) + f"?sslmode=verify-ca&sslrootcert={cluster.ca}"
    settings = {**fake_routes(upstream, "ok", "500"), "deployments": []}
    settings["routes"] = [route for route in settings["routes"] if route["model"].startswith("fake-")]
    settings["database"] = {"url": url, "password": {"env": "DB_PASSWORD"}}
    gateway = await asyncio.to_thread(new_gateway, settings, env={"DB_PASSWORD": PASSWORD})
    answers = await ask(gateway, 10)
    assert {answer.status for answer in answers if not answer.streamed} <= {200, 502}

    # Two gateways on one database would each believe that the ledger is theirs alone.
    with pytest.raises(GatewayFailed, match="Another Outpost process writes to this database"):
        await asyncio.to_thread(new_gateway, settings, env={"DB_PASSWORD": PASSWORD})

    await asyncio.to_thread(cluster.stop, immediately=True)
    check_refused(await ask(gateway, 10))
    await asyncio.to_thread(cluster.start)
    await check_healed(gateway)

    found = {row["id"] for row in gateway.rows()}
    assert {answer.headers["x-request-id"] for answer in answers} <= found
    assert PASSWORD not in gateway.log()
    assert await asyncio.to_thread(gateway.stop) == 0
