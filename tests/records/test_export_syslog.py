"""Records over syslog to a real receiver: at least once, in order, from where it broke off."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st
from sqlalchemy import select

from appliance.records.database import Database
from appliance.records.export.exporters import Exporters
from appliance.records.export.forwarder import Forwarder
from appliance.records.export.source import Source, Window
from appliance.records.export.syslog import Delivery, Receiver, SyslogError, frame, message, tls_context
from appliance.records.recorder import Recorder
from appliance.records.rows import ExchangeRow
from appliance.records.tables import counters
from appliance.settings.recording import Exporter
from tests.fakes.syslog_server import SyslogServer, make_certificates, parse_frames, server_context

FRAMES = [frame(b"first message"), frame("zweite Nachricht ä".encode()), frame(b"3")]
WHOLE = b"".join(FRAMES)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


# --- messages and frames ---

_HEAD = re.compile(
    rb"<(\d{1,3})>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ([!-~]{1,255}) "
    rb"([!-~]{1,48}) ([!-~]{1,128}) ([!-~]{1,32}) - (.*)",
    re.DOTALL,
)


@bounds(deadline=None, max_examples=200)
@given(st.text(max_size=300), st.text(max_size=60), st.integers(0, 23), st.floats(0, 4e9), st.binary(max_size=50))
def test_a_message_is_rfc_5424(host: str, kind: str, facility: int, moment: float, body: bytes) -> None:
    text = message(body, moment=moment, kind=kind, facility=facility, host=host, process=77)
    match = _HEAD.fullmatch(text)
    assert match is not None
    assert int(match[1]) == facility * 8 + 6
    assert (match[3], match[4], match[6]) == (b"outpost", b"77", body)


@bounds(deadline=None, max_examples=100)
@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(0, 300))
def test_frames_can_be_told_apart_and_a_part_of_one_is_none(bodies: list[bytes], cut: int) -> None:
    data = b"".join(map(frame, bodies))
    assert parse_frames(data) == (bodies, b"")
    assert parse_frames(data[:cut])[0] == bodies[: len(parse_frames(data[:cut])[0])]


# --- a delivery, broken off at every byte ---


@pytest.mark.parametrize("stop", range(len(WHOLE)))
def test_a_receiver_that_breaks_off_is_never_taken_for_one_that_has_read(stop: int) -> None:
    with SyslogServer([stop]) as server:
        with pytest.raises(SyslogError):
            Delivery(Receiver("127.0.0.1", server.port, timeout_s=5.0)).deliver(FRAMES)
        assert server.received.get(timeout=5) == WHOLE[:stop]
        assert Delivery(Receiver("127.0.0.1", server.port)).deliver(FRAMES) == "read"
        assert server.received.get(timeout=5) == WHOLE


@pytest.mark.parametrize("stop", [0, 1, 2, len(WHOLE) // 2, len(WHOLE) - 1])
def test_over_tls_neither(stop: int, certificates: tuple[Path, Path, Path]) -> None:
    ca, cert, key = certificates
    receiver_of = lambda port: Receiver("127.0.0.1", port, tls_context(ca, None, None), 5.0)  # noqa: E731
    with SyslogServer([stop], tls=server_context(cert, key)) as server:
        try:
            # Without a reset it cannot be known; what must not be is certainty.
            assert Delivery(receiver_of(server.port)).deliver(FRAMES) == "unsure"
        except SyslogError:
            pass
        assert server.received.get(timeout=5) == WHOLE[:stop]
        assert Delivery(receiver_of(server.port)).deliver(FRAMES) == "read"
        assert server.received.get(timeout=5) == WHOLE


def test_a_large_batch_to_a_receiver_that_breaks_off_in_the_middle() -> None:
    frames = [frame(bytes([65 + n % 26]) * 1000) for n in range(8000)]
    with SyslogServer([1_000_000]) as server:
        with pytest.raises(SyslogError):
            Delivery(Receiver("127.0.0.1", server.port)).deliver(frames)
        assert Delivery(Receiver("127.0.0.1", server.port)).deliver(frames) == "read"
        assert len(server.whole) > 8000


def test_a_receiver_that_never_ends_a_connection_leaves_it_open_to_doubt() -> None:
    with SyslogServer(orderly=False) as server:
        assert Delivery(Receiver("127.0.0.1", server.port, timeout_s=0.3)).deliver(FRAMES) == "unsure"


def test_nobody_there_is_told_with_the_place() -> None:
    with SyslogServer() as server:
        port = server.port
    with pytest.raises(SyslogError, match=f"no connection to 127.0.0.1 port {port}: connection refused"):
        Delivery(Receiver("127.0.0.1", port)).deliver(FRAMES)


def test_a_certificate_of_somebody_else_is_refused(certificates: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, cert, key = certificates
    other_ca, _, _ = make_certificates(tmp_path / "other")
    wrong_name = make_certificates(tmp_path / "name", host="127.0.0.9")
    for ca, context in (
        (other_ca, server_context(cert, key)),
        (None, server_context(cert, key)),
        (wrong_name[0], server_context(wrong_name[1], wrong_name[2])),
    ):
        with SyslogServer(tls=context) as server:
            with pytest.raises(SyslogError, match="certificate is not accepted"):
                Delivery(Receiver("127.0.0.1", server.port, tls_context(ca, None, None))).deliver(FRAMES)
            assert server.received.get(timeout=5) == b""


def test_the_gateway_shows_its_certificate_where_it_is_asked_for(certificates: tuple[Path, Path, Path]) -> None:
    ca, cert, key = certificates
    with SyslogServer(tls=server_context(cert, key, client_ca=ca)) as server:
        assert Delivery(Receiver("127.0.0.1", server.port, tls_context(ca, cert, key))).deliver(FRAMES) == "read"


def test_a_delivery_can_be_given_up() -> None:
    with SyslogServer(orderly=False) as server:
        delivery = Delivery(Receiver("127.0.0.1", server.port, timeout_s=60.0))
        ended: list[str] = []

        def work() -> None:
            try:
                ended.append(delivery.deliver(FRAMES))
            except SyslogError as error:
                ended.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        server.received.get(timeout=5)
        delivery.abort()
        thread.join(5)
        assert not thread.is_alive()
        assert ended == ["the delivery was given up"]


# --- the task ---


class Box:
    def __init__(self, database: Database, recorder: Recorder) -> None:
        self.database = database
        self.recorder = recorder

    async def record(self, count: int, begin: int = 1) -> None:
        rows = [ExchangeRow(id=f"req_{n}", kind="chat", started_at=float(n)) for n in range(begin, begin + count)]
        await asyncio.gather(*map(self.recorder.submit, rows))

    def forwarder(self, port: int, **options: Any) -> Forwarder:
        exporter = Exporter.model_validate({"name": "siem", "host": "127.0.0.1", "port": port, "transport": "tcp"})
        exporter = exporter.model_copy(update=options.pop("update", {}))
        return Forwarder(exporter, self.database, self.recorder, hostname="box", version="1", **options)

    async def delivered(self) -> int:
        async with self.database.read() as connection:
            query = select(counters.c.value).where(counters.c.name == "export:siem")
            return int(await connection.scalar(query) or 0)


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[Box]:
    recorder = Recorder(database)
    await recorder.start()
    yield Box(database, recorder)
    await recorder.close()


def numbers(messages: list[bytes]) -> list[int]:
    return [int(match[1]) for text in messages if (match := re.search(rb"externalId=(\d+)", text))]


async def test_records_and_events_arrive_in_order_and_the_place_is_kept(any_box: Box) -> None:
    box = any_box
    await box.record(3)
    await box.recorder.write(lambda tx: tx.append("admin.key.create", {"object": "key_1"}))
    await box.record(2, begin=4)
    with SyslogServer() as server:
        forwarder = box.forwarder(server.port, most=4)
        assert [await forwarder.step() for _ in range(3)] == [4, 2, 0]
        assert numbers(server.whole) == [1, 2, 3, 4, 5, 6]
        assert (await box.delivered(), forwarder.progress.delivered) == (6, 6)
        await box.record(1, begin=6)
        # Another process goes on from there.
        assert await box.forwarder(server.port).step() == 1
        assert numbers(server.whole) == [1, 2, 3, 4, 5, 6, 7]


async def test_after_any_break_everything_arrives_at_least_once_and_in_order(box: Box) -> None:
    """The receiver breaks off at every byte of the first message, and here and there later."""
    await box.record(3)
    with SyslogServer() as server:
        await box.forwarder(server.port).step()
        batch = await asyncio.to_thread(server.received.get, timeout=5)
    first = len(frame(parse_frames(batch)[0][0]))
    plan = [*range(first), *range(first, len(batch), 37)]
    with SyslogServer(plan) as server:
        await box.recorder.write(lambda tx: tx.connection.execute(counters.delete()))
        forwarder = box.forwarder(server.port)
        failures = 0
        while await box.delivered() < 3:
            try:
                await forwarder.step()
            except SyslogError:
                failures += 1
                assert await box.delivered() == 0, "nothing is taken for delivered that was not read"
        assert failures == len(plan)
        assert numbers(server.whole)[-3:] == [1, 2, 3]


async def test_ocsf_over_tls(box: Box, certificates: tuple[Path, Path, Path]) -> None:
    ca, cert, key = certificates
    await box.record(2)
    with SyslogServer(tls=server_context(cert, key)) as server:
        await box.forwarder(server.port, update={"format": "ocsf", "transport": "tls", "ca": ca}).step()
        match = _HEAD.fullmatch(server.whole[0])
        assert match is not None
        assert (match[1], match[2], match[5]) == (b"110", b"box", b"exchange")
        assert json.loads(match[6])["metadata"]["sequence"] == 1


async def test_a_receiver_that_never_ends_connections_gets_repeats_but_does_not_stop_the_export(box: Box) -> None:
    await box.record(2)
    with SyslogServer(orderly=False) as server:
        forwarder = box.forwarder(server.port, timeout_s=0.2)
        for _ in range(2):
            with pytest.raises(SyslogError, match="sent again"):
                await forwarder.step()
        assert await forwarder.step() == 2
        await box.record(1, begin=3)
        assert await forwarder.step() == 1
        assert numbers(server.whole) == [1, 2, 1, 2, 1, 2, 3]


async def test_the_task_outlives_a_receiver_that_is_away(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    await box.record(2)
    with SyslogServer() as server:
        port = server.port
    tried, pauses = asyncio.Event(), []
    back = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            tried.set()
            await back.wait()
        elif len(pauses) > 4:
            idle.set()
            await asyncio.Event().wait()

    idle = asyncio.Event()
    forwarder = box.forwarder(port, sleep=sleep)
    task = asyncio.create_task(forwarder.run())
    await asyncio.wait_for(tried.wait(), 20)
    assert pauses == [1.0, 2.0, 5.0, 10.0]
    assert "connection refused" in (forwarder.progress.trouble or "")
    server = SyslogServer()
    forwarder._exporter = forwarder._exporter.model_copy(update={"port": server.port})
    with server:
        back.set()
        await asyncio.wait_for(idle.wait(), 20)
        assert numbers(server.whole) == [1, 2]
    assert forwarder.progress.trouble is None
    told = [r.message for r in caplog.records if r.name == "outpost.export" and r.levelno >= logging.WARNING]
    assert told == ["export_stopped"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_stop_does_not_wait_for_a_receiver_that_hangs(box: Box) -> None:
    await box.record(1)
    with SyslogServer(orderly=False) as server:
        task = asyncio.create_task(box.forwarder(server.port, timeout_s=60.0).run())
        await asyncio.to_thread(server.received.get, timeout=10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)
    assert await box.delivered() == 0


async def test_a_reload_replaces_what_changed_and_leaves_the_rest(box: Box) -> None:
    await box.record(2)
    with SyslogServer() as one, SyslogServer() as two:

        def exporter(name: str, port: int, **more: Any) -> Exporter:
            return Exporter.model_validate(
                {"name": name, "host": "127.0.0.1", "port": port, "transport": "tcp", **more}
            )

        writes = Counting(box.recorder, 2)
        exporters = Exporters(box.database, writes, "1")
        first = [exporter("a", one.port), exporter("b", two.port)]
        await exporters.change(first)
        for server in (one, two):
            await asyncio.to_thread(server.received.get, timeout=10)
        before = dict(exporters._tasks)
        await asyncio.wait_for(writes.done.wait(), 10)
        await exporters.change([first[0], exporter("b", two.port, facility=16), exporter("c", two.port)])
        assert [each.name for each in exporters.progress()] == ["a", "b", "c"]
        assert exporters._tasks[first[0]] is before[first[0]]
        assert before[first[1]][1].cancelled()
        # The new one begins at the beginning, the changed one has nothing to repeat.
        await asyncio.to_thread(two.received.get, timeout=10)
        assert numbers(two.whole) == [1, 2, 1, 2]
        await exporters.close()
        assert exporters.progress() == []


class Counting:
    """A recorder that tells when so many works are written."""

    def __init__(self, recorder: Recorder, works: int) -> None:
        self._recorder = recorder
        self._left = works
        self.done = asyncio.Event()

    def write(self, work: Any, *, durable: bool = True) -> asyncio.Future[Any]:
        future = self._recorder.write(work, durable=durable)
        future.add_done_callback(self._count)
        return future

    def _count(self, _: object) -> None:
        self._left -= 1
        if not self._left:
            self.done.set()


# --- the source ---


async def test_a_window_is_read_whole_in_batches_and_ends_where_it_began(any_box: Box, monkeypatch: Any) -> None:
    box = any_box
    await box.record(450)
    await box.recorder.write(lambda tx: tx.append("admin.x.y", {"actor": {"organization": "org_b"}}))
    source = Source(box.database)
    seen: list[int] = []
    async for records in source.read(Window(after=10)):
        if not seen:
            await box.record(5, begin=500)
        assert len(records) <= 200
        seen += [record.seq for record in records]
    assert seen == list(range(11, 452))
    since = [r.seq async for records in source.read(Window(since=449.0, until=451.0)) for r in records]
    assert since == [449, 450]
    theirs = [r.seq async for records in source.read(Window(organization="org_b")) for r in records]
    assert theirs == [451]
