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

ROUNDS = 30

# One process loads the code and forks a writer a round: loading it each time would take longer than the test.
WRITE_UNTIL_KILLED = """
import asyncio, os, sys
from pathlib import Path
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.records.rows import ExchangeRow

async def write(path, tag):
    database = await Database.open(Path(path))
    recorder = Recorder(database)
    await recorder.start()
    print("ready", os.getpid(), flush=True)
    async def client(number):
        count = 0
        while True:
            name = f"{tag}.{number}.{count}"
            seq = await recorder.submit(ExchangeRow(id=name, kind="chat.completions", started_at=0.0))
            print("ack", seq, name, "end", flush=True)
            count += 1
    await asyncio.gather(*[client(n) for n in range(12)])

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


def test_every_acknowledged_row_survives_kill(tmp_path: Path) -> None:
    path = tmp_path / "outpost.db"
    dice = random.Random(7)
    acknowledged: dict[int, str] = {}
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_UNTIL_KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(ROUNDS):
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            word, pid = process.stdout.readline().split()
            assert word == "ready"
            time.sleep(dice.uniform(0.0, 0.1))
            os.kill(int(pid), signal.SIGKILL)
            for line in iter(process.stdout.readline, "killed\n"):
                match line.split():
                    case ["ack", seq, name, "end"]:
                        assert int(seq) not in acknowledged, "a sequence number was given twice"
                        acknowledged[int(seq)] = name
            found = stored(path)
            assert {seq: name for seq, name in acknowledged.items() if found.get(seq) != name} == {}
    assert len(acknowledged) > ROUNDS
    assert sorted(stored(path)) == list(range(1, len(stored(path)) + 1))


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
