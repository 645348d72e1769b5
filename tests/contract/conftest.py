"""What the contract tests share."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.gateway import Gateway


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    """An HTTP client of the session's gateway, with an admin's key."""
    with gateway.http() as client:
        yield client
