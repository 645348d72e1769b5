"""The pages in docs/ say what the code does: roles, metrics, endpoints, commands, settings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families

from appliance.cli import app
from appliance.identity.permissions import BOX_WIDE, PERMISSIONS, ROLES
from appliance.settings import load
from appliance.telemetry.metrics import Known, Ledger, Metrics, Sources
from tests.door.whole_desk import open_whole
from tests.telemetry.rows import row

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *(
        DOCS / f"{name}.md"
        for name in ("people", "limits", "providers", "records", "responses", "routing", "telemetry")
    ),
]
PAGES.append(DOCS / "admin-api.md")
NOT_OURS = frozenset({"le"})


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"(?ms)^```{kind}\n(.*?)^```$", page.read_text(encoding="utf-8"))


def table(page: Path, heading: str) -> list[list[str]]:
    """The rows of the table whose first heading is this, cell by cell."""
    lines = page.read_text(encoding="utf-8").splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def test_the_table_of_roles() -> None:
    shown = {}
    for cells in table(DOCS / "people.md", "permission"):
        permission = cells[0].strip("`")
        shown[permission] = {role for role, cell in zip(ROLES, cells[2:], strict=True) if cell == "yes"}
        assert cells[1].endswith(r"\*") is (permission in BOX_WIDE), permission
    assert shown == {each: {role for role, held in ROLES.items() if each in held} for each in PERMISSIONS}


async def test_the_table_of_metrics() -> None:
    """Every family with its type and labels, and none that is not there."""
    metrics = Metrics(
        Sources(
            in_flight=lambda: 0,
            ledger=lambda: Ledger(0, 0.0, True),
            queues=lambda: {("small", "batch"): 1},
            replicas=lambda: [("small", "ready")],
            dropped=lambda: {"traces": 1},
        ),
        "1.2.3",
        known=Known(frozenset({"chat"}), frozenset({"small"}), frozenset({"day"}), gates=frozenset({"small"})),
    )
    metrics.observe(row())
    metrics.refused("day", "team")
    metrics.lagged(0.1)
    metrics.shadowed("chat", "small", "same", 1.0, 5)
    metrics.checked("small", True)
    page, _ = await metrics.render("text/plain")
    families = {}
    for family in text_string_to_metric_families(page.decode()):
        if family.name.startswith("outpost_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = set().union(*(sample.labels for sample in family.samples)) - NOT_OURS
            assert family.samples, name
            families[name] = (family.type, labels)
    shown = {
        name.strip("`"): (kind, set() if labels == "–" else set(labels.split(", ")))
        for name, kind, labels, _ in table(DOCS / "telemetry.md", "metric")
    }
    assert shown == families


async def test_the_table_of_endpoints(tmp_path: Path) -> None:
    """Every path of the operator's listener stands in the page, with its permissions."""
    async with open_whole(tmp_path) as whole:
        there = {(each.path.replace("{name}", "{id}"), each.permission) for each in whole.operators}
    rows = table(DOCS / "admin-api.md", "endpoint")
    text = " ".join(cells[0] for cells in rows)
    kinds = ("organizations", "teams", "users", "service-accounts")
    for path, permission in there:
        short = path.removeprefix("/admin/v1")
        if short.split("/")[1] in kinds and "members" not in short:
            assert f"/{short.split('/')[1]}`" in text
            continue
        if path.startswith("/admin/v1/me/keys"):
            continue  # as /admin/v1/keys
        found = [cells[1] for cells in rows if f"{path}`" in cells[0] or f"`{path}`" in cells[0]]
        assert found, path
        wanted = "none" if permission == "anyone" else permission
        assert any(wanted in each for each in found), (path, permission)
    named = {each for cells in rows for each in re.findall(r"(/admin/v1/[^`]*|/metrics|/log[^`]*)`", cells[0])}
    assert {each for each in named if not any(path.startswith(each) for path, _ in there)} == set()


# --- settings -----------------------------------------------------------------------------------


WITH_SETTINGS = [page for page in PAGES if blocks(page, "yaml")]


def test_most_pages_show_settings() -> None:
    """So that a block that is marked otherwise does not go unread."""
    assert {page.stem for page in WITH_SETTINGS} >= {"people", "limits", "records", "telemetry"}


@pytest.mark.parametrize("page", WITH_SETTINGS, ids=lambda page: page.stem)
def test_settings_in_pages_are_good(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(text)), encoding="utf-8")
        load(file, {}, machine=False)


# --- commands -----------------------------------------------------------------------------------


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its path."""

    def below(path: tuple[str, ...], found: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        yield path, found
        for name, child in getattr(found, "commands", {}).items():
            yield from below((*path, name), child)

    yield from below((), typer.main.get_command(app))


COMMANDS = dict(commands())


def called(page: Path) -> Iterator[list[str]]:
    """The calls of outpost in a page's blocks and code spans, as words."""
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    spans = [span for span in re.findall(r"`((?:\.venv/bin/)?outpost [^`\n]+)`", text) if "…" not in span]
    for line in [*shell.splitlines(), *spans]:
        for call in re.findall(r"(?:^\s*|[(;|&]\s*)(?:\.venv/bin/)?outpost (?=[a-z-])([^|<>()#;&]*)", line):
            yield shlex.split(call.replace('"', " ").replace("'", " "))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_pages_exist(page: Path) -> None:
    for words in called(page):
        path: tuple[str, ...] = ()
        while len(path) < len(words) and (*path, words[len(path)]) in COMMANDS:
            path = (*path, words[len(path)])
        found = COMMANDS[path]
        assert path or words == ["--help"], words
        known = {option for parameter in found.params for option in parameter.opts} | {"--help"}
        rest = words[len(path) :]
        assert not hasattr(found, "commands") or all(word.startswith("-") or word == "…" for word in rest), words
        for word in rest:
            if re.match(r"--?[a-z]", word):
                assert word.split("=")[0] in known, (words, word)


def test_the_table_of_commands_is_complete() -> None:
    text = " ".join(cells[0] for cells in table(ROOT / "README.md", "command"))
    top = {path[0] for path in COMMANDS if path}
    assert {name for name in top if f"`outpost {name}" not in text} == set()
    for path, found in COMMANDS.items():
        if len(path) == 2 and not hasattr(found, "commands"):
            line = next(cells[0] for cells in table(ROOT / "README.md", "command") if f"outpost {path[0]}" in cells[0])
            assert f"`{path[1]}`" in line or f"{path[0]} {path[1]}`" in line, path


def test_helps_are_english() -> None:
    for path, found in COMMANDS.items():
        texts = [found.help or "", *(getattr(each, "help", None) or "" for each in found.params)]
        for text in texts:
            assert not re.search(r"\b[Aa] [aeio]", text), (path, text)
        assert found.help or not path, path


def test_every_page_is_named_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {page.name for page in DOCS.glob("*.md") if f"docs/{page.name}" not in text} == set()
