"""Which builds of llama-cpp-python are worth trying on a machine, best first. Pure: facts in, candidates out.

Two facts shape the list. GCC 12 compiles llama.cpp's AMX kernels wrongly (its `_tile_loadconfig` declares 8 of the 64
bytes that it reads) and the first decode crashes; clang 16 and later compile them right, and AMX doubles the speed.
ggml's own threads need no OpenMP library at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

AMX_OFF = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
AVX512_BASE = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})

PORTABLE_X86: dict[str, frozenset[str]] = {
    "GGML_SSE42": frozenset({"sse4_2"}),
    "GGML_AVX": frozenset({"avx"}),
    "GGML_AVX2": frozenset({"avx2"}),
    "GGML_FMA": frozenset({"fma"}),
    "GGML_F16C": frozenset({"f16c"}),
    "GGML_BMI2": frozenset({"bmi2"}),
}
WIDE_X86: dict[str, frozenset[str]] = {
    "GGML_AVX512": AVX512_BASE,
    "GGML_AVX512_VBMI": AVX512_BASE | {"avx512vbmi"},
    "GGML_AVX512_VNNI": AVX512_BASE | {"avx512_vnni"},
    "GGML_AVX512_BF16": AVX512_BASE | {"avx512_bf16"},
}
"""llama.cpp's switch → the processor features (as /proc/cpuinfo spells them) that code built with it needs."""


@dataclass(frozen=True)
class Machine:
    """What the build depends on: architecture as `uname -m`, processor features, system and C library."""

    arch: str
    features: frozenset[str]
    platform: str


@dataclass(frozen=True)
class Compiler:
    """A C and C++ pair that was seen to compile and link. `amx`: with -march=native it would emit AMX."""

    kind: Literal["clang", "gcc"]
    cc: str
    cxx: str
    version: str
    amx: bool = False


@dataclass(frozen=True)
class Options:
    """What the user may choose: llama.cpp's tinyBLAS kernels, and further CMake arguments (such as -DGGML_CUDA=ON)."""

    llamafile: bool = False
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One way to build; `flags` are CMake arguments. `allows_amx` is what the proof holds it to."""

    name: str
    compiler: Compiler
    flags: tuple[str, ...]
    allows_amx: bool


def candidates(machine: Machine, compilers: Sequence[Compiler], options: Options) -> list[Candidate]:
    """Best to safest: each compiler's native build, then builds for named instruction sets."""
    found = [_native(compiler, options) for compiler in compilers]
    if not compilers:
        return found
    # The safest builds use the compiler of the system, which GCC is on most.
    safest = next((c for c in compilers if c.kind == "gcc"), compilers[0])
    x86 = machine.arch in ("x86_64", "amd64")
    if x86 and machine.features >= AVX512_BASE:
        found.append(_portable(machine, safest, options, PORTABLE_X86 | WIDE_X86, "for AVX-512"))
    switches, label = (PORTABLE_X86, "for AVX2 at most") if x86 else ({}, "without tuning")
    found.append(_portable(machine, safest, options, switches, label))
    return found


def _common(compiler: Compiler, options: Options) -> list[str]:
    return [
        f"-DCMAKE_C_COMPILER={compiler.cc}",
        f"-DCMAKE_CXX_COMPILER={compiler.cxx}",
        "-DLLAVA_BUILD=OFF",
        "-DGGML_OPENMP=OFF",
        f"-DGGML_LLAMAFILE={'ON' if options.llamafile else 'OFF'}",
    ]


def _native(compiler: Compiler, options: Options) -> Candidate:
    flags = [*_common(compiler, options), "-DGGML_NATIVE=ON"]
    name = f"{compiler.version}, for this processor"
    without_amx = compiler.kind == "gcc"
    if without_amx and compiler.amx:
        flags += [f"-DCMAKE_C_FLAGS={AMX_OFF}", f"-DCMAKE_CXX_FLAGS={AMX_OFF}"]
        name += " without AMX"
    return Candidate(name, compiler, (*flags, *options.extra), allows_amx=not without_amx)


def _portable(
    machine: Machine, compiler: Compiler, options: Options, switches: dict[str, frozenset[str]], label: str
) -> Candidate:
    flags = [*_common(compiler, options), "-DGGML_NATIVE=OFF"]
    flags += [f"-D{name}={'ON' if needs <= machine.features else 'OFF'}" for name, needs in switches.items()]
    return Candidate(f"{compiler.version}, {label}", compiler, (*flags, *options.extra), allows_amx=False)
