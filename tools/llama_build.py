"""Build llama-cpp-python for this machine, prove it by decoding, keep the proven wheel for the next checkout.

Every candidate of tools/llama_candidates.py has to prove itself (tools/llama_prove.py) before it is installed; one that
does not is said aloud and the next is tried. Proven wheels lie outside the tree, named by everything that went into
them; one from there is proved again before use, and nothing breaks when they are gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from tools.environment import LOGS, ROOT, Environment, LockFile, digest, pip_detail, pip_hint
from tools.llama_candidates import Candidate, Compiler, Machine, Options, candidates
from tools.progress import LiveLine, StepFailed, run_logged, say

WORK = ROOT / "build" / "llama"
LOCK = LockFile("llama.txt")
OLDEST_CLANG = 16
NEWEST_CLANG = 21
OLDEST_CMAKE = (3, 21)
PROOF_LIMIT_S = 240.0
BYTES_PER_JOB = 1 << 30

NO_COMPILER = """no C and C++ compiler was found, and llama-cpp-python has to be compiled for this machine.
On Debian or Ubuntu:  sudo apt-get install clang-16     (best: where the processor has AMX it is twice as fast)
                 or:  sudo apt-get install build-essential"""

SMOKE = """#include <thread>
#include <vector>
int main() { std::vector<int> v(1); std::thread([&] { v[0] = 1; }).join(); }
"""


class BuildRefused(Exception):
    """This candidate does not build or does not prove itself; the next one may."""


def ensure(environment: Environment, model: Path, variables: Mapping[str, str], *, again: bool = False) -> None:
    """Have a proven llama-cpp-python in `environment`. `again` builds anew even where one is in place."""
    machine = this_machine()
    options = read_options(variables)
    choice = variables.get("LLAMA_COMPILER", "auto")
    if choice not in ("auto", "clang", "gcc"):
        raise StepFailed(f"LLAMA_COMPILER={choice} is not known; use auto, clang or gcc")
    # Which compilers there are, but not their versions: an upgrade of the system is no reason to build again.
    present = [shutil.which(cc) or "" for _, cc, _ in compiler_names(choice)]
    key = digest(LOCK.key(), repr(sorted(machine.features)), machine.platform, repr(options), *present)
    if environment.stamped("llama", key) and not again:
        return
    compilers = find_compilers(choice)
    if not compilers:
        raise StepFailed(NO_COMPILER)
    reasons = []
    for candidate in candidates(machine, compilers, options):
        try:
            wheel, answer = obtain(environment, candidate, machine, model, cache_folder(variables), again=again)
        except BuildRefused as refusal:
            reasons.append(f"{candidate.name}: {refusal}")
            say(f"llama.cpp ({candidate.name}) is not usable here: {refusal}")
            continue
        install(environment, wheel)
        environment.stamp("llama", key)
        say(f"llama.cpp ({candidate.name}) proved itself: {answer!r}")
        return
    raise StepFailed("no build of llama-cpp-python works on this machine:\n  " + "\n  ".join(reasons))


def read_options(variables: Mapping[str, str]) -> Options:
    llamafile = variables.get("LLAMA_LLAMAFILE", "OFF").upper() in ("ON", "1", "TRUE", "YES")
    return Options(llamafile=llamafile, extra=tuple(shlex.split(variables.get("LLAMA_CMAKE_ARGS", ""))))


def cache_folder(variables: Mapping[str, str]) -> Path:
    if chosen := variables.get("OUTPOST_CACHE"):
        return Path(chosen).expanduser() / "outpost" / "wheels"
    home = variables.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "outpost" / "wheels"


# --- what there is to build with -----------------------------------------------------------------


def this_machine() -> Machine:
    features: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            features.update(value.split())
            break
    system = f"{sysconfig.get_platform()} {' '.join(platform.libc_ver())}"
    return Machine(platform.machine(), frozenset(features), system)


def compiler_names(choice: str) -> list[tuple[Literal["clang", "gcc"], str, str]]:
    """(kind, C compiler, C++ compiler) to look for, best first. `choice`: auto, clang or gcc."""
    suffixes = ["", *(f"-{n}" for n in range(NEWEST_CLANG, OLDEST_CLANG - 1, -1))]
    names: list[tuple[Literal["clang", "gcc"], str, str]] = [("clang", f"clang{s}", f"clang++{s}") for s in suffixes]
    names += [("gcc", "gcc", "g++"), ("gcc", "cc", "c++")]
    return [name for name in names if choice in ("auto", name[0])]


def find_compilers(choice: str) -> list[Compiler]:
    """At most one working pair of each kind: the first clang that is new enough, then GCC."""
    found: dict[str, Compiler] = {}
    for kind, cc, cxx in compiler_names(choice):
        if kind not in found and (compiler := _inspect(kind, cc, cxx)):
            found[kind] = compiler
    return list(found.values())


def _inspect(kind: Literal["clang", "gcc"], cc: str, cxx: str) -> Compiler | None:
    paths = shutil.which(cc), shutil.which(cxx)
    if not paths[0] or not paths[1]:
        return None
    version = _output([paths[0], "--version"]).splitlines()[:1]
    if not version or ("clang" in version[0]) != (kind == "clang"):
        return None
    number = re.search(r"version (\d+)", version[0])
    if kind == "clang" and (number is None or int(number[1]) < OLDEST_CLANG):
        return None
    with tempfile.TemporaryDirectory() as folder:
        # A clang without the C++ library's headers, or without a linker, is common and of no use.
        link = [paths[1], "-std=c++17", "-pthread", "-x", "c++", "-", "-o", f"{folder}/smoke"]
        if subprocess.run(link, input=SMOKE, text=True, capture_output=True, check=False).returncode:
            return None
    macros = _output([paths[0], "-march=native", "-dM", "-E", "-x", "c", os.devnull])
    return Compiler(kind, paths[0], paths[1], version[0], amx="__AMX_" in macros)


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


# --- one candidate -------------------------------------------------------------------------------


def obtain(
    environment: Environment, candidate: Candidate, machine: Machine, model: Path, cache: Path, *, again: bool
) -> tuple[Path, str]:
    """A proven wheel of this candidate, from the cache or built now, and what it answered. Raises BuildRefused."""
    key = digest(LOCK.key(), *candidate.flags, candidate.compiler.version, *sorted(machine.features), machine.platform)
    kept = cache / key
    if not again and (wheel := _kept_wheel(kept)):
        try:
            return wheel, prove(environment, wheel, candidate, model)
        except BuildRefused as refusal:
            say(f"the kept wheel is not used ({refusal}); building anew")
    wheel = build(environment, candidate, WORK / key)
    answer = prove(environment, wheel, candidate, model)
    try:
        _keep(wheel, kept, candidate)
    except OSError as error:
        say(f"the wheel could not be kept for other checkouts ({error}); this one is not affected")
    return wheel, answer


def build(environment: Environment, candidate: Candidate, work: Path) -> Path:
    """Compile and pack; takes minutes. Raises BuildRefused."""
    source = _source(environment)
    shutil.rmtree(work, ignore_errors=True)
    (work / "tmp").mkdir(parents=True)
    log = LOGS / "llama-build.log"
    variables = {
        name: value
        for name, value in _build_tools(environment).items()
        if name not in ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "SKBUILD_CMAKE_ARGS")
    }
    variables |= {
        "CMAKE_ARGS": shlex.join(candidate.flags),
        "CMAKE_GENERATOR": "Ninja",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(_jobs()),
        "TMPDIR": str(work / "tmp"),
    }
    # pip's own cache knows nothing of CMAKE_ARGS and would hand out another candidate's wheel.
    quiet = ["--no-deps", "--no-build-isolation", "--no-cache-dir"]
    command = environment.pip("wheel", "--verbose", *quiet, "--wheel-dir", str(work), str(source))
    say(f"building llama.cpp with {candidate.name}; this takes 3 to 10 minutes, once")
    try:
        run_logged("llama.cpp", command, log=log, cwd=ROOT, env=variables, detail=ninja_detail, done="built")
    except StepFailed as failure:
        print(failure, flush=True)
        log.replace(log.with_name(f"llama-build-failed-{work.name}.log"))
        raise BuildRefused("it does not compile") from failure
    finally:
        shutil.rmtree(work / "tmp", ignore_errors=True)
    return next(work.glob("*.whl"))


def _source(environment: Environment) -> Path:
    """The locked source distribution, its hash checked by pip."""
    folder = WORK / "source" / LOCK.key()
    if not (found := list(folder.glob("*.tar.gz"))):
        run_logged(
            "llama-cpp-python's source",
            environment.pip(
                *("download", "--require-hashes", "--no-deps", "--no-build-isolation", "--progress-bar", "off"),
                *("--dest", str(folder), "-r", str(LOCK.path)),
            ),
            log=LOGS / "llama-source.log",
            cwd=ROOT,
            env=_build_tools(environment),
            detail=pip_detail,
            hint=pip_hint,
        )
        found = list(folder.glob("*.tar.gz"))
    return found[0]


def _build_tools(environment: Environment) -> dict[str, str]:
    """The process environment with a usable cmake and ninja on PATH, from the lock where the system has none."""
    cmake = re.search(r"version (\d+)\.(\d+)", _output(["cmake", "--version"]) if shutil.which("cmake") else "")
    fresh = cmake is not None and (int(cmake[1]), int(cmake[2])) >= OLDEST_CMAKE
    if not fresh or not shutil.which("ninja"):
        environment.install(LockFile("cmake.txt"), label="cmake and ninja")
        return environment.variables()
    return dict(os.environ)


def _jobs() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // BYTES_PER_JOB))


def ninja_detail(line: str) -> str | None:
    """Ninja's `[96/140] …` as `96 of 140 steps`."""
    found = re.match(r"\s*\[(\d+)/(\d+)\]", line)
    return f"{found[1]} of {found[2]} steps" if found else None


def prove(environment: Environment, wheel: Path, candidate: Candidate, model: Path) -> str:
    """Let a child decode with the unpacked wheel; what it answered. Raises BuildRefused."""
    line = LiveLine("llama.cpp's proof")
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        command = [str(environment.python), "-m", "tools.llama_prove", str(model)]
        command += [] if candidate.allows_amx else ["--no-amx"]
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": folder},
            text=True,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            output, _ = child.communicate(timeout=PROOF_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise BuildRefused(f"it did not finish decoding within {PROOF_LIMIT_S:.0f} s") from None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    try:
        answer = judge(child.returncode, output)
    except BuildRefused:
        line.finish("FAILED")
        raise
    line.finish("passed")
    return answer


def judge(code: int, output: str) -> str:
    """The answer out of the proof's exit code and output. Raises BuildRefused with the reason."""
    if code < 0:
        raise BuildRefused(f"it crashed while decoding ({signal.Signals(-code).name})")
    last = output.strip().splitlines()[-1:]
    if code or not last:
        raise BuildRefused(f"the proof ended with code {code}: {' '.join(last) or 'no output'}")
    report = json.loads(last[0])
    if not report["ok"]:
        raise BuildRefused(str(report["why"]))
    return str(report["answer"])


# --- wheels --------------------------------------------------------------------------------------


def _kept_wheel(folder: Path) -> Path | None:
    """The wheel that an earlier checkout kept, if it is whole."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        wheel = folder / str(about["wheel"])
        return wheel if _sha256(wheel) == about["sha256"] else None
    except (OSError, ValueError, KeyError):
        return None


def _keep(wheel: Path, folder: Path, candidate: Candidate) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = {"wheel": wheel.name, "sha256": _sha256(wheel), "build": candidate.name, "flags": candidate.flags}
    texts: Iterator[tuple[str, bytes]] = iter(
        [(wheel.name, wheel.read_bytes()), ("about.json", json.dumps(about, indent=1).encode())]
    )
    for name, data in texts:
        # Whole or not at all: two checkouts may finish at the same time.
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as part:
            part.write(data)
        Path(part.name).replace(folder / name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def install(environment: Environment, wheel: Path) -> None:
    command = environment.pip("install", "--no-deps", "--force-reinstall", "--no-index", str(wheel))
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stdout.write(done.stdout + done.stderr)
        raise StepFailed("the proven wheel of llama-cpp-python could not be installed")
