"""The least that a Python gateway can do: an aiohttp server that passes requests on and answers back.

No keys, no checks, no records, no retries. It is the floor that Outpost's cost is compared with.

    python -m benchmarks.peers.relay --port 9001 --upstream http://127.0.0.1:9000
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator

import aiohttp
import uvloop
from aiohttp import web

UPSTREAM = web.AppKey("upstream", str)
SESSION = web.AppKey("session", aiohttp.ClientSession)


async def health(request: web.Request) -> web.Response:
    return web.Response(text="ok")


async def relay(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    url = request.app[UPSTREAM] + request.path
    headers = {"content-type": "application/json"}
    async with request.app[SESSION].post(url, data=body, headers=headers) as upstream:
        if not upstream.content_type.startswith("text/event-stream"):
            whole = await upstream.read()
            return web.Response(body=whole, status=upstream.status, content_type=upstream.content_type)
        response = web.StreamResponse(status=upstream.status, headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        async for data in upstream.content.iter_any():
            await response.write(data)
        await response.write_eof()
        return response


async def session(app: web.Application) -> AsyncIterator[None]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as opened:
        app[SESSION] = opened
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description="a bare relay for benchmarks")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    arguments = parser.parse_args()
    app = web.Application()
    app[UPSTREAM] = arguments.upstream
    app.cleanup_ctx.append(session)
    app.router.add_get("/health", health)
    app.router.add_post("/v1/chat/completions", relay)
    loop = uvloop.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=arguments.port, access_log=None, print=None, loop=loop, backlog=4096)


if __name__ == "__main__":
    main()
