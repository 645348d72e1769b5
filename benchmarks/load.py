"""The load generator: one process, raw sockets, a job as JSON on stdin, a result as JSON on stdout.

    python -m benchmarks.load < job.json

Its own CPU is not counted for anybody; `cpu_s` and `lag_p99_s` of the result only show whether it was itself
the bottleneck. A request counts as completed only when its answer is whole: status 200, well framed, the
expected number of content pieces, `[DONE]` and usage where a stream must have them.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
import time
from collections import deque
from typing import cast

import msgspec
import uvloop

from benchmarks.wire import AnswerReader, BrokenAnswer

STALE = "connection lost before the answer began"


class Lane(msgspec.Struct, frozen=True):
    """One connection that sends one request after another."""

    bodies: list[str]
    """JSON bodies, sent in turn."""
    start_s: float = 0.0
    requests: int = 0
    """How many requests; 0 = until the job's `duration_s`."""


class Job(msgspec.Struct, frozen=True):
    """What to send. Times in seconds from the start of the job."""

    port: int
    lanes: list[Lane]
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = {}
    stream: bool = False
    duration_s: float = 5.0
    """No new request after this."""
    limit_s: float = 60.0
    """Everything still open after this is an error; the process ends."""
    rate: float = 0.0
    """0 = closed loop. Else requests a second, random arrivals (fixed seed) over the lanes as a pool of connections."""
    piece: str = " tok"
    """Regular expression of one content piece in an answer's body."""
    expect_pieces: int = 0
    """Pieces in a complete answer; 0 = any number."""
    expect_usage: bool = False
    detail: bool = False
    """Also give each request's own record."""


class Request(msgspec.Struct):
    """One request's record; times in seconds from the start of the job."""

    lane: int
    start_s: float
    ttft_s: float = 0.0
    end_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    arrivals_s: list[float] = []
    """When each piece (or group that came together) was read."""


class Result(msgspec.Struct):
    completed: int = 0
    pieces: int = 0
    completion_tokens: int = 0
    errors: dict[str, int] = {}
    example: str = ""
    """The start of the first answer that was an error."""
    elapsed_s: float = 0.0
    cpu_s: float = 0.0
    lag_p99_s: float = 0.0
    latency_s: list[float] = []
    ttft_s: list[float] = []
    gaps_s: list[float] = []
    """Times between successive reads of pieces, all streams together."""
    requests: list[Request] = []

    @property
    def failed(self) -> int:
        return sum(self.errors.values())


class Connection(asyncio.Protocol):
    """Sends one request at a time and tells the client when its answer has ended."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._reader: AnswerReader | None = None
        self._record = Request(0, 0.0)
        self._last = 0.0
        self._ended: asyncio.Future[str] | None = None
        self.used = False
        """A request was sent on it before."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    @property
    def open(self) -> bool:
        return self._transport is not None

    def send(self, payload: bytes, record: Request) -> asyncio.Future[str]:
        """The future resolves to "" or to why the answer is no good."""
        assert self._transport is not None
        self._reader = AnswerReader(self._client.piece)
        self._record = record
        self._last = 0.0
        self.used = True
        self._ended = self._client.loop.create_future()
        self._transport.write(payload)
        return self._ended

    def data_received(self, data: bytes) -> None:
        if self._reader is None:
            return
        try:
            new = self._reader.feed(data)
        except BrokenAnswer as error:
            self._end(str(error))
            return
        if new:
            now = self._client.now()
            if self._last:
                self._client.result.gaps_s.append(now - self._last)
            else:
                self._record.ttft_s = now - self._record.start_s
            self._last = now
            if self._client.job.detail:
                self._record.arrivals_s.append(now)
        if self._reader.complete:
            self._end("")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._reader is not None:
            self._reader.end_of_file()
            lost = "connection lost before the end" if self._reader.begun else STALE
            self._end("" if self._reader.complete else lost)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def _end(self, trouble: str) -> None:
        reader, self._reader = self._reader, None
        if reader is None or self._ended is None or self._ended.done():
            return
        trouble = trouble or self._judge(reader)
        result = self._client.result
        if trouble:
            result.example = result.example or reader.start.decode(errors="replace")[:300]
            self.close()
        else:
            if reader.closes:
                self.close()
            record = self._record
            record.end_s = self._client.now()
            record.prompt_tokens, record.completion_tokens = reader.prompt_tokens, reader.completion_tokens
            result.completed += 1
            result.pieces += reader.pieces
            result.completion_tokens += record.completion_tokens
            result.latency_s.append(record.end_s - record.start_s)
            if self._last:
                result.ttft_s.append(record.ttft_s)
            if self._client.job.detail:
                result.requests.append(record)
        self._ended.set_result(trouble)

    def _judge(self, reader: AnswerReader) -> str:
        job = self._client.job
        if reader.status != 200:
            return f"status {reader.status}"
        if job.expect_pieces and reader.pieces != job.expect_pieces:
            return f"{reader.pieces} pieces instead of {job.expect_pieces}"
        if job.stream and not reader.done:
            return "no [DONE]"
        if job.expect_usage and not reader.completion_tokens:
            return "no usage"
        return ""


class Client:
    """Runs one job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.loop = asyncio.get_running_loop()
        self.piece = re.compile(job.piece.encode())
        self.result = Result()
        self._zero = time.perf_counter()
        head = [f"POST {job.path} HTTP/1.1", f"host: 127.0.0.1:{job.port}", "content-type: application/json"]
        self._head = "\r\n".join(head + [f"{k}: {v}" for k, v in job.headers.items()])

    def now(self) -> float:
        return time.perf_counter() - self._zero

    async def run(self) -> Result:
        lags: list[float] = []
        watch = asyncio.create_task(self._watch_lag(lags))
        connections: list[Connection] = []
        for _ in self.job.lanes:
            connections.append(await self._connect())
        self._zero = time.perf_counter()
        work = self._open_loop(connections) if self.job.rate else self._closed_loop(connections)
        try:
            async with asyncio.timeout(self.job.limit_s):
                await work
        except TimeoutError:
            self._count(f"not finished after {self.job.limit_s:.0f} s")
        self.result.elapsed_s = self.now()
        watch.cancel()
        for connection in connections:
            connection.close()
        self.result.cpu_s = time.process_time()
        lags.sort()
        self.result.lag_p99_s = lags[int(len(lags) * 0.99)] if lags else 0.0
        return self.result

    async def _connect(self) -> Connection:
        _, connection = await self.loop.create_connection(lambda: Connection(self), "127.0.0.1", self.job.port)
        return connection

    def _payload(self, body: str) -> bytes:
        data = body.encode()
        return f"{self._head}\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data

    async def _closed_loop(self, connections: list[Connection]) -> None:
        lanes = zip(range(len(connections)), self.job.lanes, connections, strict=True)
        await asyncio.gather(*(self._lane(*each) for each in lanes))

    async def _lane(self, index: int, lane: Lane, connection: Connection) -> None:
        if lane.start_s:
            await asyncio.sleep(lane.start_s - self.now())
        payloads = [self._payload(body) for body in lane.bodies]
        sent = 0
        while sent < lane.requests if lane.requests else self.now() < self.job.duration_s:
            connection = await self._exchange(connection, payloads[sent % len(payloads)], index)
            sent += 1

    async def _exchange(self, connection: Connection, payload: bytes, lane: int) -> Connection:
        """One request on this connection, or on a fresh one if the server has closed it."""
        try:
            if not connection.open:
                connection = await self._connect()
            began, used = self.now(), connection.used
            trouble = await connection.send(payload, Request(lane, began))
            if trouble == STALE and used:
                # llama.cpp's server closes after a stream without announcing it; clients then send again.
                connection = await self._connect()
                trouble = await connection.send(payload, Request(lane, began))
        except OSError as error:
            trouble = f"cannot connect: {error.strerror}"
        if trouble:
            self._count(trouble)
            # A subject that refuses at once must not turn the closed loop into a storm.
            await asyncio.sleep(0.05)
        return connection

    def _count(self, trouble: str) -> None:
        self.result.errors[trouble] = self.result.errors.get(trouble, 0) + 1

    async def _open_loop(self, connections: list[Connection]) -> None:
        """Requests arrive whether or not earlier ones were answered; one that finds no free connection waits."""
        arrivals = random.Random(1)
        idle = deque(connections)
        payloads = [[self._payload(body) for body in lane.bodies] for lane in self.job.lanes]
        free = asyncio.Semaphore(len(connections))
        running: set[asyncio.Task[None]] = set()

        async def one(payload: bytes, arrived: float) -> None:
            async with free:
                connection = idle.popleft()
                try:
                    if not connection.open:
                        connection = await self._connect()
                    trouble = await connection.send(payload, Request(0, arrived))
                except OSError as error:
                    trouble = f"cannot connect: {error.strerror}"
                finally:
                    idle.append(connection)
            if trouble:
                self._count(trouble)

        due, sent = 0.0, 0
        while (due := due + arrivals.expovariate(self.job.rate)) < self.job.duration_s:
            if (wait := due - self.now()) > 0:
                await asyncio.sleep(wait)
            bodies = payloads[sent % len(payloads)]
            task = asyncio.create_task(one(bodies[sent // len(payloads) % len(bodies)], self.now()))
            running.add(task)
            task.add_done_callback(running.discard)
            sent += 1
        await asyncio.gather(*running)

    async def _watch_lag(self, lags: list[float]) -> None:
        while True:
            due = self.loop.time() + 0.02
            await asyncio.sleep(0.02)
            lags.append(self.loop.time() - due)


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)

    async def run() -> Result:
        return await Client(job).run()

    try:
        result = uvloop.run(run())
    except OSError as error:
        result = Result(errors={f"cannot connect: {error.strerror}": 1})
    # An unbuffered sys.stdout may write a part of a long text to a pipe and drop the rest; a buffered writer does not.
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:
        out.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
