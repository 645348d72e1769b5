"""Rules that hold for every file of the project: no addresses or paths of a machine, sizes, direction of imports."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("appliance", "runtimes")
MAX_LINES = 500

LONG_FILES: dict[str, str] = {
    "guard_models/data/written/names.yaml": "a list of names",
    "guard_models/data/written/places.yaml": "a list of names",
}
"""File → why it may exceed the limit."""

# Written in pieces, so that this file passes its own test.
REGISTRY_NAMES = [
    ("pypi", "org"),
    ("pythonhosted", "org"),
    ("npmjs", "org"),
    ("npmjs", "com"),
    ("crates", "io"),
    ("rubygems", "org"),
    ("proxy.golang", "org"),
    ("deb.debian", "org"),
    ("archive.ubuntu", "com"),
    ("docker", "io"),
    ("ghcr", "io"),
    ("quay", "io"),
    ("nvcr", "io"),
]
REGISTRY = r"(?<![\w-])(?:" + "|".join(re.escape(".".join(name)) for name in REGISTRY_NAMES) + r")\b"
# The folders that this checkout and its user live in, and others that only ever exist on one machine.
MACHINE_FOLDERS = (str(ROOT), f"{Path.home()}/", "/wor" + "k/", "/roo" + "t/", "/tm" + "p/w/", "/op" + "t/pypi")
FORBIDDEN = re.compile(rf"{REGISTRY}|(?<![\w.~:/$}}])(?:" + "|".join(map(re.escape, MACHINE_FOLDERS)) + ")")

# Who may import whom inside the appliance (DESIGN: door → exchange → …; routing → providers → dialects).
LEAVES = frozenset({"errors", "hedged", "ids", "redact", "secret_file", "wishes", "__init__"})
MAY_IMPORT: dict[str, frozenset[str]] = {
    "dialects": frozenset(),
    "settings": frozenset(),
    "guards": frozenset(),
    "identity": frozenset({"records", "settings"}),
    "records": frozenset({"settings"}),
    "providers": frozenset({"dialects", "settings"}),
    "routing": frozenset({"providers", "dialects", "settings"}),
    "pricing": frozenset({"settings"}),
    "limits": frozenset({"identity", "records", "settings", "pricing"}),
    "telemetry": frozenset({"records", "settings"}),
    "account": frozenset({"identity", "limits", "routing", "records", "dialects", "pricing"}),
    "responses": frozenset({"identity", "records", "dialects", "routing", "settings"}),
    "collaborators": frozenset({"identity", "records", "settings"}),
    "outgoing": frozenset({"routing", "dialects"}),
    "rescue": frozenset({"routing", "dialects", "providers", "settings"}),
    "attempt": frozenset({"identity", "limits", "outgoing", "providers", "records", "rescue", "routing", "dialects"}),
    "relay": frozenset(
        {
            "account",
            "attempt",
            "outgoing",
            "rescue",
            "identity",
            "limits",
            "routing",
            "records",
            "dialects",
            "providers",
            "settings",
            "pricing",
        }
    ),
    "gateway": frozenset({"account", "collaborators", "identity", "limits", "responses", "routing", "shadows"}),
    "exchange": frozenset(
        {
            "account",
            "collaborators",
            "gateway",
            "outgoing",
            "relay",
            "responses",
            "shadow_answers",
            "shadows",
            "identity",
            "limits",
            "routing",
            "records",
            "dialects",
            "providers",
            "settings",
            "pricing",
        }
    ),
    "shadows": frozenset(
        {"identity", "routing", "records", "dialects", "providers", "settings", "pricing", "shadow_answers"}
    ),
    "shadow_answers": frozenset({"routing", "records", "dialects"}),
    "counting": frozenset({"gateway", "identity", "routing", "dialects", "providers"}),
    "explaining": frozenset({"collaborators", "outgoing", "exchange", "gateway", "identity", "routing", "dialects"}),
    "door": frozenset(
        {
            "collaborators",
            "counting",
            "exchange",
            "gateway",
            "explaining",
            "relay",
            "responses",
            "shadows",
            "identity",
            "limits",
            "routing",
            "records",
            "dialects",
            "providers",
            "settings",
            "telemetry",
            "pricing",
        }
    ),
}
"""Package → what it may import beside itself and the leaves. Who is not listed (cli, commands, app) joins the parts."""

RUNTIMES_MAY_IMPORT: dict[str, frozenset[str]] = {
    "engine": frozenset(),
    "catalogue": frozenset({"engine"}),
    "llamacpp": frozenset({"engine", "catalogue"}),
    "supervisor": frozenset({"engine"}),
}


def ours() -> list[Path]:
    """Every file that git tracks or would track; the whole tree where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        found = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        hidden = {".git", ".venv", "build", "dist", "outpost-data", "__pycache__"}
        found = [p for p in ROOT.rglob("*") if not hidden & set(p.relative_to(ROOT).parts)]
    return sorted(path for path in found if path.is_file())


def text_of(path: Path) -> str | None:
    data = path.read_bytes()
    return None if b"\0" in data[:8192] else data.decode("utf-8", "replace")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    found = []
    for path in ours():
        for number, line in enumerate((text_of(path) or "").splitlines(), 1):
            found += [f"{name_of(path)}:{number}: {match[0]}" for match in FORBIDDEN.finditer(line)]
    assert found == []


def test_no_file_of_ours_is_too_long() -> None:
    suffixes = {".py", ".md", ".yaml", ".toml", ""}
    generated = ("requirements/", "LICENSE", "docs/settings.md", "guard_models/outpost-")
    lengths = {
        name_of(path): len((text_of(path) or "").splitlines())
        for path in ours()
        if path.suffix in suffixes and not name_of(path).startswith(generated)
    }
    too_long = {name: lines for name, lines in lengths.items() if lines > MAX_LINES and name not in LONG_FILES}
    assert too_long == {}
    assert [name for name in LONG_FILES if lengths.get(name, 0) <= MAX_LINES] == [], "these excuses are not needed"


def test_every_test_file_has_a_name_of_its_own() -> None:
    """pytest knows modules by their name alone."""
    names = [path.name for path in ours() if name_of(path).startswith("tests/") and path.suffix == ".py"]
    assert sorted({name for name in names if names.count(name) > 1} - {"conftest.py", "__init__.py"}) == []


# --- locks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_a_lock_pins_with_hashes_and_names_no_address(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*-(?:i|f|-index-url|-extra-index-url|-find-links)\b", text, re.MULTILINE)
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"(?m)^\s*#.*\n?", "", text).strip())
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


def locked(name: str) -> dict[str, set[str]]:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    for package, version in re.findall(r"(?m)^([a-z0-9._-]+)==([^\s;\\]+)", text):
        found.setdefault(package, set()).add(version)
    return found


def test_the_locks_agree_with_each_other_and_with_pyproject() -> None:
    development = locked("dev.txt")
    for name in ("run.txt", "build.txt", "gpu.txt"):
        for package, versions in locked(name).items():
            assert development.get(package, versions) == versions, f"{name}: {package}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    everything = locked("run.txt") | locked("llama.txt")
    for requirement in project["dependencies"]:
        assert re.split(r"[\[><=~ ]", requirement)[0] in everything, f"{requirement} is not locked; run `make lock`"
    for requirement in project["optional-dependencies"]["dev"]:
        assert re.split(r"[\[><=~ ]", requirement)[0] in development, f"{requirement} is not locked; run `make lock`"


# --- what the README and pyproject promise --------------------------------------------------------


def test_every_make_target_that_the_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^([a-z-]+):", makefile))
    named = set(
        re.findall(r"(?m)(?:^|`)make ([a-z][a-z-]+)\b", _code((ROOT / "README.md").read_text(encoding="utf-8")))
    )
    assert {"serve", "test", "check", "bench", "lock"} <= named
    assert named <= targets


def _code(markdown: str) -> str:
    """The code blocks and code spans of a page."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", markdown, re.DOTALL))


def test_every_file_that_the_readme_names_exists() -> None:
    code = _code((ROOT / "README.md").read_text(encoding="utf-8"))
    named = set(re.findall(r"(?<![\w./-])((?:docs|requirements|tests|models|appliance|runtimes)/[\w./-]*)", code))
    assert "docs/settings.md" in named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_packages_and_the_command_can_be_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package in PACKAGES:
        assert package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
        assert Path(str(import_module(package).__file__)).parent == ROOT / package
    module, _, function = project["project"]["scripts"]["outpost"].partition(":")
    assert callable(getattr(import_module(module), function))
    assert import_module("appliance").__version__ == project["project"]["version"]


# --- which way imports point ----------------------------------------------------------------------


def imports_of(path: Path) -> set[str]:
    """Dotted names of ours that a module imports (`from appliance import errors` counts as appliance.errors)."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(ROOT).parent.parts
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            found |= {base} if "." in base else {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def part_of(path: Path) -> str:
    """The room of the house that a file is in: a package below `appliance` or `runtimes`, or a module there."""
    inner = path.relative_to(ROOT).parts[1]
    return inner.removesuffix(".py")


def sources(package: str) -> list[Path]:
    return [path for path in ours() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] == package]


def test_runtimes_know_nothing_of_the_appliance() -> None:
    wrong = [f"{name_of(p)}: {i}" for p in sources("runtimes") for i in imports_of(p) if i.startswith("appliance")]
    assert wrong == []


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("appliance", MAY_IMPORT), ("runtimes", RUNTIMES_MAY_IMPORT)],
    ids=["appliance", "runtimes"],
)
def test_imports_point_one_way(package: str, allowed: dict[str, frozenset[str]]) -> None:
    wrong = []
    for path in sources(package):
        part = part_of(path)
        if part not in allowed:
            continue
        for name in imports_of(path):
            top, inner = name.split(".")[:2]
            if top == package and inner not in allowed[part] | LEAVES | {part}:
                wrong.append(f"{name_of(path)} imports {name}")
    assert wrong == []


def test_pure_parts_do_no_io() -> None:
    """Dialects, the plan of a route and the engine's protocol take data and return data."""
    pure = [p for p in sources("appliance") if part_of(p) == "dialects"] + [ROOT / "runtimes" / "engine.py"]
    effects = {"asyncio", "socket", "subprocess", "aiohttp", "sqlite3", "sqlalchemy", "threading", "requests"}
    wrong = []
    for path in pure:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{name_of(path)} imports {name}" for name in names if name.split(".")[0] in effects]
    assert wrong == []
