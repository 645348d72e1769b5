"""The order in which files are tested: those that take long come first, and each stays whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.conftest import LONG, ROOT, pytest_collection_modifyitems


def test_each_long_file_is_there_and_stands_once() -> None:
    """One that has been renamed would come late without a word."""
    assert [name for name in LONG if not (ROOT / "tests" / name).is_file()] == []
    assert len(set(LONG)) == len(LONG)


def test_long_files_then_those_with_many_tests() -> None:
    collected = [("a.py", 2), (LONG[1], 1), ("b.py", 3), ("c.py", 2), (LONG[0], 1)]
    items: list[Any] = [
        SimpleNamespace(path=ROOT / "tests" / name, name=f"{name}::{number}")
        for name, count in collected
        for number in range(count)
    ]
    pytest_collection_modifyitems(items)
    assert [item.name for item in items] == [
        *(f"{LONG[0]}::0", f"{LONG[1]}::0"),
        *("b.py::0", "b.py::1", "b.py::2"),
        *("a.py::0", "a.py::1", "c.py::0", "c.py::1"),
    ]
