"""The pure decisions of the set-up: which engine builds are tried, and what counts as a proof."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.environment import digest, pip_detail
from tools.llama_build import BuildRefused, cache_folder, judge, ninja_detail, read_options
from tools.llama_candidates import AMX_OFF, AVX512_BASE, PORTABLE_X86, WIDE_X86, Compiler, Machine, Options, candidates
from tools.lock import engine_requirement, plan

AVX2 = frozenset({"sse4_2", "avx", "avx2", "fma", "f16c", "bmi2"})
WIDE = AVX2 | AVX512_BASE | {"avx512vbmi", "avx512_vnni", "avx512_bf16"}
CLANG = Compiler("clang", "/bin/clang-16", "/bin/clang++-16", "clang version 16", amx=True)
GCC = Compiler("gcc", "/bin/gcc", "/bin/g++", "gcc 12", amx=True)


def machine(features: frozenset[str], arch: str = "x86_64") -> Machine:
    return Machine(arch, features, "linux")


def test_clang_comes_first_and_may_use_amx() -> None:
    found = candidates(machine(WIDE), [CLANG, GCC], Options())
    assert [c.compiler.kind for c in found] == ["clang", "gcc", "gcc", "gcc"]
    assert "-DGGML_NATIVE=ON" in found[0].flags
    assert found[0].allows_amx
    assert not any(AMX_OFF in flag for flag in found[0].flags)


def test_gcc_never_compiles_amx() -> None:
    for candidate in candidates(machine(WIDE), [CLANG, GCC], Options()):
        if candidate.compiler.kind == "gcc":
            assert not candidate.allows_amx
            native = "-DGGML_NATIVE=ON" in candidate.flags
            assert (f"-DCMAKE_CXX_FLAGS={AMX_OFF}" in candidate.flags) == native


def test_gcc_without_amx_on_the_processor_gets_no_odd_flags() -> None:
    plain = Compiler("gcc", "/bin/gcc", "/bin/g++", "gcc 9")
    assert not any("CMAKE_C_FLAGS" in flag for flag in candidates(machine(AVX2), [plain], Options())[0].flags)


@given(features=st.frozensets(st.sampled_from(sorted(WIDE))), llamafile=st.booleans())
def test_a_portable_build_asks_for_nothing_that_the_processor_lacks(features: frozenset[str], llamafile: bool) -> None:
    switches = PORTABLE_X86 | WIDE_X86
    for candidate in candidates(machine(features), [CLANG, GCC], Options(llamafile=llamafile)):
        assert {"-DLLAVA_BUILD=OFF", "-DGGML_OPENMP=OFF"} <= set(candidate.flags)
        assert f"-DGGML_LLAMAFILE={'ON' if llamafile else 'OFF'}" in candidate.flags
        for name, needs in switches.items():
            assert f"-D{name}=ON" not in candidate.flags or needs <= features


def test_the_last_resort_does_not_depend_on_avx512() -> None:
    last = candidates(machine(WIDE), [GCC], Options())[-1]
    assert not any(flag.startswith("-DGGML_AVX512") for flag in last.flags)
    assert "-DGGML_AVX2=ON" in last.flags


def test_other_processors_get_a_native_and_an_untuned_build() -> None:
    found = candidates(machine(frozenset({"asimd"}), "aarch64"), [GCC], Options(extra=("-DX=1",)))
    assert ["-DGGML_NATIVE=ON" in c.flags for c in found] == [False, True][::-1]
    assert all(c.flags[-1] == "-DX=1" or "-DX=1" in c.flags for c in found)
    assert not any("AVX" in flag for c in found for flag in c.flags)


def test_without_a_compiler_there_is_nothing_to_try() -> None:
    assert candidates(machine(WIDE), [], Options()) == []


@pytest.mark.parametrize(
    ("code", "output", "why"),
    [
        (-11, "", "SIGSEGV"),
        (-6, "GGML_ASSERT(x) failed", "SIGABRT"),
        (1, "Traceback\nImportError: no libllama", "ImportError: no libllama"),
        (0, "", "no output"),
        (0, json.dumps({"ok": False, "why": "logits are not finite"}), "logits are not finite"),
    ],
)
def test_a_proof_that_fails_says_why(code: int, output: str, why: str) -> None:
    with pytest.raises(BuildRefused, match=why):
        judge(code, output)


def test_a_proof_that_passes_gives_the_answer() -> None:
    report = json.dumps({"ok": True, "why": "", "answer": "Paris.", "system": "CPU"})
    assert judge(0, f"some noise\n{report}\n") == "Paris."


def test_progress_is_read_from_what_the_tools_print() -> None:
    assert ninja_detail("  [96/140] /usr/bin/clang++ -c x.cpp") == "96 of 140 steps"
    assert ninja_detail("-- Installing: x") is None
    assert pip_detail("Collecting aiohttp==3.14.5 (from -r run.txt)") == "aiohttp==3.14.5"
    assert pip_detail("  Downloading some/where/numpy-2.4.6-cp311.whl (16 MB)") == "numpy-2.4.6-cp311.whl"
    assert pip_detail("Requirement already satisfied: x") is None


def test_the_wheel_cache_lies_outside_the_tree_where_the_user_wants_it() -> None:
    assert cache_folder({"OUTPOST_CACHE": "/a"}) == Path("/a/outpost/wheels")
    assert cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/outpost/wheels")
    assert cache_folder({}) == Path.home() / ".cache" / "outpost" / "wheels"


def test_build_options_come_from_the_environment() -> None:
    assert read_options({}) == Options()
    assert read_options({"LLAMA_LLAMAFILE": "on", "LLAMA_CMAKE_ARGS": "-DA=1 '-DB=x y'"}) == Options(
        llamafile=True, extra=("-DA=1", "-DB=x y")
    )


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_a_digest_tells_its_parts_apart(left: list[str], right: list[str]) -> None:
    assert (digest(*left) == digest(*right)) == (left == right)


def test_every_lock_is_bound_to_the_development_lock(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["a>=1", "llama-cpp-python==9.9"]\n')
    engine = engine_requirement(tmp_path / "pyproject.toml")
    assert engine == "llama-cpp-python==9.9"
    steps = plan(engine)
    assert steps[0][0] == "dev.txt"
    bound = {name for name, arguments, _ in steps if "requirements/dev.txt" in arguments}
    assert {"run.txt", "build.txt", "gpu.txt"} <= bound
    assert ("llama.txt", ["-", "--no-deps"], "llama-cpp-python==9.9\n") in steps
