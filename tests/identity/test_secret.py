"""The secret file."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.identity.secret import IdentityError, load_secret, secret_path


def test_it_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    secret = load_secret(tmp_path / "data", random=lambda size: b"r" * size)
    assert secret == b"r" * 32
    path = secret_path(tmp_path / "data")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert load_secret(tmp_path / "data") == secret
    assert [p.name for p in path.parent.iterdir()] == ["master.key"]


def test_all_who_start_together_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: load_secret(tmp_path), range(32)))
    assert len(set(found)) == 1


def test_a_readable_file_is_refused(tmp_path: Path) -> None:
    load_secret(tmp_path)
    secret_path(tmp_path).chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_secret(tmp_path)


@pytest.mark.parametrize("content", ["", "abc", "g" * 64, "a" * 63, "a" * 65, "é" * 64])
def test_a_damaged_file_is_refused_without_its_content(tmp_path: Path, content: str) -> None:
    load_secret(tmp_path)
    secret_path(tmp_path).write_text(content)
    with pytest.raises(IdentityError, match="damaged") as caught:
        load_secret(tmp_path)
    assert content == "" or content not in caught.value.message


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match=r"file/secrets/master\.key"):
        load_secret(tmp_path / "file")
