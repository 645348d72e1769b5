"""The verifier that docs/records.md prints: what `ledger export` writes passes it, and nothing else does."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.test_ledger import run, write

PAGE = Path(__file__).resolve().parents[2] / "docs" / "records.md"
RECORDS = 12


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with the program and the public key, and the lines of an export: a checkpoint behind 5 and behind 10."""
    folder = tmp_path_factory.mktemp("page")
    asyncio.run(write(folder, 1, RECORDS, lambda number: number % 5 == 0))
    (program,) = re.findall(r"(?ms)^cat > verify\.py <<'PY'\n(.*?)^PY$", PAGE.read_text(encoding="utf-8"))
    (folder / "verify.py").write_text(program)
    (folder / "ledger.pub").write_text(run("key", "--data-dir", folder).stdout)
    export = folder / "ledger.jsonl"
    assert run("export", "--to", export, "--data-dir", folder).exit_code == 0
    return folder, export.read_text().splitlines(keepends=True)


def verified(folder: Path, lines: list[str]) -> subprocess.CompletedProcess[str]:
    """By the program of the page."""
    (folder / "changed.jsonl").write_text("".join(lines))
    args = [sys.executable, "verify.py", "changed.jsonl", "ledger.pub"]
    return subprocess.run(args, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_an_export_as_it_was_written(exported: tuple[Path, list[str]]) -> None:
    done = verified(*exported)
    assert (done.returncode, done.stdout) == (0, f"sound up to record {RECORDS + 1} - signed up to record 10\n"), done


def replaced(old: str, new: str) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        text = "".join(lines)
        assert old in text
        return text.replace(old, new, 1).splitlines(keepends=True)

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(replaced('"id":"req_4"', '"id":"req_x"'), id="a body"),
        pytest.param(replaced('"seq":3,"kind":"admin.key.create"', '"seq":3,"kind":"admin.key.revoke"'), id="a kind"),
        pytest.param(replaced('"seq":4,"kind":"exchange"', '"seq":4,"kind":"refusal"'), id="a request's kind"),
        pytest.param(replaced('"seq":4,"kind"', '"seq":40,"kind"'), id="a number"),
        pytest.param(replaced('"seq":4,', '"seq":4,"more":1,'), id="a field more"),
        pytest.param(replaced("\\n10\\n", "\\n11\\n"), id="a checkpoint"),
        pytest.param(lambda lines: lines[:2] + lines[3:], id="a record less"),
        pytest.param(lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], id="another order"),
        pytest.param(lambda lines: [*lines[:3], lines[0], *lines[1:]], id="a second beginning"),
    ],
)
def test_a_changed_export(exported: tuple[Path, list[str]], change: Callable[[list[str]], list[str]]) -> None:
    folder, lines = exported
    done = verified(folder, change(lines))
    assert done.returncode != 0, done.stdout
    assert done.stdout == ""
    result = run("verify", "--from", folder / "changed.jsonl", "--public-key", folder / "ledger.pub")
    assert result.exit_code == 1, result.output
