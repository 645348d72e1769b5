"""A real process that records: killed at any moment, or with no room on its disk."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 24

WRITE_UNTIL_KILLED = """
import asyncio, sys
from pathlib import Path
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.records.rows import ExchangeRow

async def main(path, tag):
    database = await Database.open(Path(path))
    recorder = Recorder(database)
    await recorder.start()
    print("ready", flush=True)
    async def client(number):
        count = 0
        while True:
            name = f"{tag}.{number}.{count}"
            seq = await recorder.submit(ExchangeRow(id=name, kind="chat.completions", started_at=0.0))
            sys.stdout.write(f"{seq} {name}\\n")
            sys.stdout.flush()
            count += 1
    await asyncio.gather(*[client(n) for n in range(12)])

asyncio.run(main(sys.argv[1], sys.argv[2]))
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
        while not recorder.available:
            await asyncio.sleep(0.01)
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
    for number in range(ROUNDS):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_UNTIL_KILLED, str(path), str(number)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(dice.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.stdout.close()
        process.wait(10)
        for line in rest.splitlines(keepends=True):
            if line.endswith("\n"):
                seq, name = line.split()
                assert int(seq) not in acknowledged, "a sequence number was given twice"
                acknowledged[int(seq)] = name
        found = stored(path)
        missing = {seq: name for seq, name in acknowledged.items() if found.get(seq) != name}
        assert missing == {}
    assert len(acknowledged) > ROUNDS
    assert sorted(stored(path)) == list(range(1, len(stored(path)) + 1))


def test_a_disk_without_room_is_reported_and_outlived(tmp_path: Path) -> None:
    path = tmp_path / "outpost.db"
    with contextlib.ExitStack():
        done = subprocess.run(
            [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    acknowledged, last = map(int, done.stdout.split())
    found = stored(path)
    assert [found[seq] for seq in range(1, acknowledged + 2)] == [f"r{n}" for n in range(acknowledged + 1)]
    assert found[last] == f"r{acknowledged + 2}"
