"""A gateway in miniature, to be killed: runs one fake engine and prints its pid when it is ready.

python supervising_process.py DIRECTORY [ENGINE OPTION…]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from runtimes.supervisor import Supervisor
from tests.supervisor.supervisor_harness import SOON, fake_spec


async def main(directory: Path, options: list[str]) -> None:
    supervisor = Supervisor()
    await supervisor.start([fake_spec(directory, *options)])
    await supervisor.wait_ready("small", SOON)
    sys.stdout.write(f"{supervisor.replicas('small')[0].pid}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
