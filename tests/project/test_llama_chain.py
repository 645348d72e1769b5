"""The chain of engine builds: what fails is said and the next is tried; only a proven wheel is installed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tools import llama_build
from tools.environment import Environment
from tools.llama_build import BuildRefused, ensure, obtain, prove
from tools.llama_candidates import Candidate, Compiler, Machine
from tools.progress import StepFailed

GCC = Compiler("gcc", "/bin/gcc", "/bin/g++", "gcc 12")
MACHINE = Machine("x86_64", frozenset({"avx2"}), "linux")
CANDIDATE = Candidate("a build", GCC, ("-DX=1",), allows_amx=False)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """An environment whose Python is a script that decides the proof by what the wheel holds."""
    environment = Environment(tmp_path / "venv")
    environment.stamps.mkdir(parents=True)
    environment.bin.mkdir()
    environment.python.write_text('#!/bin/sh\nexec sh "$PYTHONPATH/proof"\n')
    environment.python.chmod(0o755)
    return environment


def wheel_with(folder: Path, proof: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "engine.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("proof", proof)
    return wheel


GOOD = 'echo \'{"ok": true, "why": "", "answer": "Paris."}\''
CRASH = "kill -SEGV $$"


def test_the_proof_is_judged_by_what_the_child_does(environment: Environment, tmp_path: Path) -> None:
    assert prove(environment, wheel_with(tmp_path / "a", GOOD), CANDIDATE, tmp_path) == "Paris."
    with pytest.raises(BuildRefused, match="SIGSEGV"):
        prove(environment, wheel_with(tmp_path / "b", CRASH), CANDIDATE, tmp_path)


def test_a_proof_that_hangs_is_ended(environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_build, "PROOF_LIMIT_S", 0.2)
    with pytest.raises(BuildRefused, match="did not finish"):
        prove(environment, wheel_with(tmp_path, "exec sleep 600"), CANDIDATE, tmp_path)


def test_a_proven_wheel_is_kept_proved_again_and_replaced_when_it_went_bad(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    def build(environment: Environment, candidate: Candidate, work: Path) -> Path:
        built.append(work)
        return wheel_with(tmp_path / f"work{len(built)}", GOOD)

    monkeypatch.setattr(llama_build, "build", build)
    cache = tmp_path / "cache"

    def once() -> Path:
        wheel, answer = obtain(environment, CANDIDATE, MACHINE, tmp_path, cache, again=False)
        assert answer == "Paris."
        return wheel

    once()
    assert len(built) == 1
    kept = once()
    assert len(built) == 1
    assert kept.is_relative_to(cache)
    kept.write_bytes(kept.read_bytes()[:-1])
    once()
    assert len(built) == 2, "a damaged wheel must not be used"


def test_the_next_candidate_is_tried_and_the_failure_is_said(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed: list[Path] = []
    proofs = iter([CRASH, GOOD])
    monkeypatch.setattr(llama_build, "find_compilers", lambda choice: [GCC])
    monkeypatch.setattr(llama_build, "build", lambda e, candidate, work: wheel_with(tmp_path / work.name, next(proofs)))
    monkeypatch.setattr(llama_build, "install", lambda e, wheel: installed.append(wheel))
    variables = {"OUTPOST_CACHE": str(tmp_path / "cache")}
    ensure(environment, tmp_path, variables)
    said = capsys.readouterr().out
    assert "not usable here: it crashed while decoding (SIGSEGV)" in said
    assert len(installed) == 1
    ensure(environment, tmp_path, variables)
    assert len(installed) == 1, "what is in place is not installed again"


def test_when_nothing_works_every_reason_is_told(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_build, "find_compilers", lambda choice: [GCC])
    monkeypatch.setattr(llama_build, "build", lambda e, c, work: wheel_with(tmp_path / work.name, CRASH))
    with pytest.raises(StepFailed, match="(?s)no build .*SIGSEGV.*SIGSEGV"):
        ensure(environment, tmp_path, {"OUTPOST_CACHE": str(tmp_path / "cache")})


def test_without_a_compiler_the_cure_is_told(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_build, "find_compilers", lambda choice: [])
    with pytest.raises(StepFailed, match="apt-get install clang-16"):
        ensure(environment, tmp_path, {})
    with pytest.raises(StepFailed, match="auto, clang or gcc"):
        ensure(environment, tmp_path, {"LLAMA_COMPILER": "tcc"})
