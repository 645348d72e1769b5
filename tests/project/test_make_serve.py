"""`make serve` sets up for the settings file that it starts with, and the tests find the models where they were put."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    # A `make test` above this one hands its own variables down.
    inherited = ("OUTPOST_CONFIG", "OUTPOST_DATA_DIR", "OUTPOST_TEST_STORE", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS")
    return {name: value for name, value in os.environ.items() if name not in inherited} | more


@pytest.fixture
def bin(tmp_path: Path) -> Path:
    """A folder whose `outpost` says how it was called."""
    script = tmp_path / "outpost"
    script.write_text('#!/bin/sh\nprintf "start [%s]" "$@"\n')
    script.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "outer", "file"),
    [
        ("--config x.yaml", "", "x.yaml"),
        ("--config=x.yaml", "", "x.yaml"),
        ("-c x.yaml", "", "x.yaml"),
        ("-cx.yaml", "", "x.yaml"),
        ("-c 'with a space.yaml'", "", "with a space.yaml"),
        ("-c first.yaml --config last.yaml", "", "last.yaml"),
        ("-c x.yaml", "outer.yaml", "x.yaml"),
        ("", "outer.yaml", "outer.yaml"),
        ("", "", ""),
        ("-c", "", ""),
    ],
)
def test_the_set_up_reads_the_file_that_is_started_with(bin: Path, arguments: str, outer: str, file: str) -> None:
    done = subprocess.run(
        ["make", "-s", "serve", f"ARGS={arguments}", f"BIN={bin}", 'SETUP=echo "set up with [$$OUTPOST_CONFIG]"; :'],
        cwd=ROOT, env=environment(OUTPOST_CONFIG=outer), text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(f"set up with [{file}]\nstart [serve]")


def test_the_store_of_the_tests_is_the_one_that_the_settings_mean(tmp_path: Path) -> None:
    config = tmp_path / "outpost.yaml"
    config.write_text(f"data_dir: {tmp_path}/elsewhere\n")
    for given, store in (
        ({"OUTPOST_CONFIG": str(config)}, tmp_path / "elsewhere" / "models"),
        ({"OUTPOST_DATA_DIR": str(tmp_path / "data")}, tmp_path / "data" / "models"),
        ({"OUTPOST_CONFIG": str(config), "OUTPOST_TEST_STORE": "/given"}, Path("/given")),
    ):
        python = tmp_path / "python"
        python.write_text(
            f'#!/bin/sh\ncase $2 in pytest) echo "$OUTPOST_TEST_STORE";; *) exec {sys.executable} "$@";; esac\n'
        )
        python.chmod(0o755)
        done = subprocess.run(
            ["make", "-s", "test-engines", f"BIN={tmp_path}", "SETUP=:"],
            cwd=ROOT, env=environment(**given), text=True, capture_output=True, check=True,
        )  # fmt: skip
        assert done.stdout == f"{store}\n"
