"""Specs, socket places, and the difference between two sets of specs."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.supervisor import SpecError, run_directory, socket_path
from runtimes.supervisor.process import LATCHES, child_environment
from runtimes.supervisor.spec import MAX_SOCKET_PATH_BYTES, ReplicaSpec, check, make_private, replacement
from tests.supervisor.supervisor_harness import fake_spec


@pytest.fixture
def short() -> Iterator[Path]:
    """pytest's own directories are too long to try this in."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


def test_a_short_data_directory_keeps_its_sockets(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(short)
    found = run_directory(Path("data"), {})
    assert found == short / "data" / "run"
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_a_long_data_directory_gets_a_short_one_of_its_own(short: Path) -> None:
    private = short / "x"
    private.mkdir()
    long = [short / ("d" * 60) / name for name in ("one", "two")]
    found = [run_directory(path, {"XDG_RUNTIME_DIR": str(private)}) for path in long]
    assert len(set(found)) == 2
    assert found[0] == run_directory(long[0], {"XDG_RUNTIME_DIR": str(private)})
    for path in found:
        assert path.parent == private
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert len(os.fsencode(socket_path(path, "n" * 200, 99))) <= MAX_SOCKET_PATH_BYTES


def test_a_run_directory_is_made_private_again_but_no_link_is_followed(tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o755)
    make_private(loose)
    assert stat.S_IMODE(loose.stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(loose)
    with pytest.raises(SpecError, match="is no directory of ours"):
        make_private(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to somebody else")
def test_a_run_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    os.chown(foreign, 12345, 12345)
    with pytest.raises(SpecError, match="belongs to another user"):
        make_private(foreign)


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=80), st.integers(0, 999)), unique=True, max_size=20))
def test_socket_names_are_short_safe_and_distinct(replicas: list[tuple[str, int]]) -> None:
    directory = Path("/" + "d" * (MAX_SOCKET_PATH_BYTES - 34))
    paths = [socket_path(directory, name.encode(errors="replace").decode(), index) for name, index in replicas]
    assert len(set(paths)) == len({(name.encode(errors="replace"), index) for name, index in replicas})
    for path in paths:
        assert path.parent == directory
        assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES


def test_specs_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="small/0 is given twice"):
        check([fake_spec(tmp_path), fake_spec(tmp_path)])
    with pytest.raises(SpecError, match="no program"):
        check([fake_spec(tmp_path, argv=[])])
    with pytest.raises(SpecError, match="has 121 bytes and the system allows 99"):
        check([fake_spec(tmp_path, socket_path=Path("/" + "x" * 120))])
    with pytest.raises(SpecError, match="small/0 and other/0 share the socket"):
        check([fake_spec(tmp_path), fake_spec(tmp_path, name="other", socket_path=fake_spec(tmp_path).socket_path)])


specs = st.dictionaries(
    st.tuples(st.sampled_from("abc"), st.integers(0, 2)), st.tuples(st.sampled_from("xy"), st.sampled_from([1.0, 2.0]))
)


@settings(deadline=None)
@given(specs, specs)
def test_a_replacement_accounts_for_every_replica_once(
    old: dict[tuple[str, int], tuple[str, float]], new: dict[tuple[str, int], tuple[str, float]]
) -> None:
    def build(drawn: dict[tuple[str, int], tuple[str, float]]) -> dict[tuple[str, int], ReplicaSpec]:
        return check(
            fake_spec(Path("/t"), name=key[0], index=key[1], env={"V": value[0]}, drain_timeout_s=value[1])
            for key, value in drawn.items()
        )

    before, after = build(old), build(new)
    plan = replacement(before, after)
    kept = [spec.key for spec in plan.adopt]
    restarted = [spec.key for spec in plan.restart]
    assert sorted([*kept, *restarted, *(spec.key for spec in plan.start)]) == sorted(after)
    assert sorted([*kept, *restarted, *plan.stop]) == sorted(before)
    assert all(old[key][0] == new[key][0] for key in kept)
    assert all(old[key][0] != new[key][0] for key in restarted)
    assert all(spec == after[spec.key] for spec in [*plan.adopt, *plan.restart, *plan.start])


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.text()), st.dictionaries(st.text(), st.text()))
def test_the_latches_cannot_be_opened(outer: dict[str, str], extra: dict[str, str]) -> None:
    opened = dict.fromkeys(LATCHES, "0")
    found = child_environment({**outer, **opened, "OPENAI_API_KEY": "x"}, {**extra, **opened})
    assert {key: found[key] for key in LATCHES} == LATCHES
    assert "OPENAI_API_KEY" not in found or "OPENAI_API_KEY" in extra
    assert {key: found[key] for key in extra if key not in LATCHES} == {
        key: value for key, value in extra.items() if key not in LATCHES
    }
