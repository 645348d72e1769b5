"""A real process that records: killed at any moment, or with no room on its disk."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = int(os.environ.get("OUTPOST_TEST_KILLS", "30"))

# One process loads the code and forks a writer a round: loading it each time would take longer than the test.
WRITE_UNTIL_KILLED = """
import asyncio, os, sys
from pathlib import Path
from sqlalchemy import insert
from appliance.records.checkpoints import Checkpointer
from appliance.records.database import Database
from appliance.records.ledger_store import verify_database
from appliance.records.recorder import Recorder
from appliance.records.rows import ExchangeRow
from appliance.records.tables import counters

async def write(path, tag):
    began = asyncio.get_running_loop().time()
    database = await Database.open(Path(path))
    recorder = Recorder(database)
    await recorder.start()
    checkpointer = await Checkpointer.open(recorder, database, Path(path).parent, every=7)
    await checkpointer.start()
    took = asyncio.get_running_loop().time() - began
    report = await verify_database(database, Path(path).parent, checkpointer.public)
    print("ready", os.getpid(), report.ok, f"{took:.3f}", report.problems, flush=True)
    async def client(number):
        count = 0
        while True:
            name = f"{tag}.{number}.{count}"
            seq = await recorder.submit(ExchangeRow(id=name, kind="chat.completions", started_at=0.0))
            print("ack", seq, name, "end", flush=True)
            count += 1
    async def admin(number):
        count = 0
        while True:
            name = f"{tag}.{number}.{count}"
            def work(tx):
                tx.connection.execute(insert(counters), {"name": f"test.{name}", "value": 1})
                return tx.append("test", {"object": name})
            seq = await recorder.write(work)
            print("ack", seq, name, "end", flush=True)
            count += 1
    async def meter(number):
        count = 0
        while True:
            name = f"test.{tag}.{number}.{count}"
            await recorder.write(
                lambda tx: tx.connection.execute(insert(counters), {"name": name, "value": 2}), durable=False
            )
            print("ack", name, "end", flush=True)
            count += 1
    await asyncio.gather(*[client(n) for n in range(9)], *[admin(n) for n in (9, 10)], meter(11))

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        asyncio.run(write(sys.argv[1], line.strip()))
    os.waitpid(child, 0)
    print("\\nkilled", flush=True)
"""

FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from appliance.errors import RecordsUnavailable
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.records.rows import ExchangeRow

def row(number):
    return ExchangeRow(id=f"r{number}", kind="chat.completions", started_at=0.0)

async def main(path):
    database = await Database.open(Path(path))
    recorder = Recorder(database, probe_s=0.02)
    await recorder.start()
    await recorder.submit(row(0))
    no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max(Path(path).stat().st_size, Path(path + "-wal").stat().st_size)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, no_limit[1]))
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        for number in range(1, 2000):
            began = loop.time()
            await recorder.submit(row(number))
    except RecordsUnavailable:
        assert loop.time() - began < 1, loop.time() - began
    else:
        raise SystemExit("the limit was never met")
    resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
    async with asyncio.timeout(10):
        await recorder.wait_available()
    seq = await recorder.submit(row(number + 1))
    await recorder.close()
    await database.close()
    print(number - 1, seq)

asyncio.run(main(sys.argv[1]))
"""


def stored(path: Path) -> dict[int, str]:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    found = dict(connection.execute("SELECT seq, id FROM exchanges").fetchall())
    connection.close()
    return found


def ledger(path: Path) -> dict[int, str]:
    """Who wrote each record, exchanges and events alike."""
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT seq, json_extract(body, '$.object') FROM events WHERE kind = 'test'").fetchall()
    names = {name for (name,) in connection.execute("SELECT name FROM counters WHERE value = 1").fetchall()}
    others = connection.execute("SELECT kind FROM events WHERE kind NOT IN ('test', 'ledger.repaired')").fetchall()
    connection.close()
    # A work is kept whole or not at all.
    assert {f"test.{name}" for _, name in found} == {name for name in names if name.startswith("test.")}
    assert others == []
    return stored(path) | dict(found)


def meters(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    found = {name for (name,) in connection.execute("SELECT name FROM counters WHERE value = 2").fetchall()}
    connection.close()
    return found


def test_everything_acknowledged_survives_kill_and_the_chain_holds(tmp_path: Path) -> None:
    path = tmp_path / "outpost.db"
    dice = random.Random(7)
    acknowledged: dict[int, str] = {}
    metered: set[str] = set()
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_UNTIL_KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(ROUNDS):
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            word, pid, sound, took, *problems = process.stdout.readline().split()
            assert word == "ready"
            assert sound == "True", problems
            assert float(took) < 5
            time.sleep(dice.uniform(0.0, 0.1))
            os.kill(int(pid), signal.SIGKILL)
            for line in iter(process.stdout.readline, "killed\n"):
                match line.split():
                    case ["ack", seq, name, "end"]:
                        assert int(seq) not in acknowledged, "a sequence number was given twice"
                        acknowledged[int(seq)] = name
                    case ["ack", name, "end"]:
                        metered.add(name)
            found = ledger(path)
            assert {seq: name for seq, name in acknowledged.items() if found.get(seq) != name} == {}
            assert metered - meters(path) == set()
    assert len(acknowledged) > ROUNDS
    assert len(metered) > ROUNDS
    connection = sqlite3.connect(path)
    numbers = [seq for (seq,) in connection.execute("SELECT seq FROM exchanges UNION ALL SELECT seq FROM events")]
    connection.close()
    assert sorted(numbers) == list(range(1, len(numbers) + 1))


def test_a_disk_without_room_is_reported_and_outlived(tmp_path: Path) -> None:
    path = tmp_path / "outpost.db"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    acknowledged, last = map(int, done.stdout.split())
    found = stored(path)
    assert [found[seq] for seq in range(1, acknowledged + 2)] == [f"r{n}" for n in range(acknowledged + 1)]
    assert found[last] == f"r{acknowledged + 2}"
