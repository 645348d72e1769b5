"""Who is told to come back in a moment does not come back before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from appliance.gateway import pause


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_none_is_shorter_than_was_said(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def story() -> None:
        for _ in range(50):
            began = time.monotonic()
            await pause(0.0034)
            assert time.monotonic() - began >= 0.0034

    run(story())
