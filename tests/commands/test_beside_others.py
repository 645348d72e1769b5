"""Commands beside a gateway or another command: reading disturbs nobody and changes nothing, writing waits its turn."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from appliance import data_dir
from appliance.cli import app
from tests.records.test_migrations import older

READING = (
    ("requests", "tail"),
    ("usage", "report"),
    ("export",),
    ("ledger", "export"),
    ("keys", "list"),
    ("users", "list"),
    ("limits", "list"),
)
WRITING = (
    ("teams", "create", "lab"),
    ("limits", "create", "--scope", "box", "--requests", "5/day"),
    ("erase", "--subject", "user_1", "--yes"),
    ("ledger", "checkpoint"),
)


def run(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--data-dir", str(folder)])


def files(folder: Path) -> dict[str, str]:
    """Every file that keeps something: SQLite's own come and go beside a reader."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_who_reads_leaves_an_older_database_as_it_is(tmp_path: Path, words: tuple[str, ...]) -> None:
    older(tmp_path / "outpost.db", "0002")
    with data_dir.hold(tmp_path):
        before = files(tmp_path)
        result = run(tmp_path, *words)
        assert files(tmp_path) == before
    assert (result.exit_code, result.stdout) == (1, "")
    assert "has schema 0002" in result.stderr
    assert "Start its gateway once" in result.stderr
    assert "Note" not in result.stderr, "nothing else is complained of"


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_who_reads_makes_no_secret(folder: Path, words: tuple[str, ...]) -> None:
    assert run(folder, *words).exit_code == 0
    assert not (folder / "secrets").exists()


def test_who_writes_may_bring_the_database_up_to_date(tmp_path: Path) -> None:
    older(tmp_path / "outpost.db", "0002")
    assert run(tmp_path, "teams", "create", "lab").exit_code == 0
    assert [path.name[:19] for path in (tmp_path / "backups").iterdir()] == ["outpost-schema-0002"]
    assert run(tmp_path, "teams", "list").stdout.count("lab") == 1


def test_a_folder_that_cannot_be_made_is_told() -> None:
    result = run(Path("/proc/none/data"), "keys", "create", "app", "--new")
    assert result.exit_code == 1
    assert result.stderr.startswith("outpost: data_dir: ")


@pytest.mark.parametrize("words", WRITING, ids=" ".join)
def test_who_writes_waits_until_another_command_has_ended(
    folder: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = contextlib.ExitStack()
    other.enter_context(data_dir.hold(folder))
    hold, tried = data_dir.hold, []

    @contextlib.contextmanager
    def watched(path: Path) -> Iterator[None]:
        tried.append(path)
        try:
            with hold(path):
                yield
        except data_dir.DataDirInUse:
            other.close()
            raise

    monkeypatch.setattr(data_dir, "hold", watched)
    result = run(folder, *words)
    # A person that nobody knows and a ledger without a record are refused; what counts is that they were looked for.
    assert "at work" not in result.output
    assert "already running" not in result.output
    assert len(tried) == 2
