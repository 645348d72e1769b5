"""What is wrong with a settings file, in words that name the line, the key and the cure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic_core import ErrorDetails

from appliance.errors import BadRequest
from appliance.settings.document import MAX_FINDINGS, Finding, Path
from appliance.settings.shape import Shape, at_path, clean, dotted, root
from appliance.settings.units import quote
from appliance.settings.values import ERROR

_CONSEQUENCES = frozenset({"default_factory_not_called"})
"""Errors that only say that another one happened."""
_BOUND_WORDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


@dataclass(frozen=True)
class Problem:
    """One fault. `line` is None where no line holds it (no file, or a key that is not there)."""

    file: str
    line: int | None
    key: str
    message: str
    cure: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        key = f"{self.key}: " if self.key else ""
        return f"{place}: {key}{self.message} – {self.cure}"


class SettingsError(BadRequest):
    """The settings cannot be used; `problems` says all that was found. Nothing was applied."""

    code = "invalid_settings"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def suggest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    by_lower = {each.lower(): each for each in known}
    lower = word.lower()
    swapped = lower.replace("-", "_")
    if swapped in by_lower:
        return by_lower[swapped]
    close = get_close_matches(lower, by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def from_pydantic(errors: Sequence[ErrorDetails]) -> list[Finding]:
    """Pydantic's errors in our words. Values are never repeated except by our own readers."""
    places = [clean(error["loc"]) for error in errors]
    parents = {path[:end] for path in places for end in range(len(path))}
    findings: list[Finding] = []
    for error, path in zip(errors, places, strict=True):
        if error["type"] in _CONSEQUENCES:
            continue
        if error["type"] == "too_short" and path in parents:
            continue  # entries that failed are not counted; their own errors say enough
        if len(findings) >= MAX_FINDINGS:
            findings.append(Finding(path, f"more than {MAX_FINDINGS} faults up to here", "correct the others first"))
            break
        findings.append(_translate(error, path))
    return findings


def _translate(error: ErrorDetails, path: Path) -> Finding:
    kind, context = error["type"], error.get("ctx", {})
    shape = at_path(path)
    if kind == ERROR:
        return Finding(path, str(context["message"]), str(context["cure"]))
    if kind == "extra_forbidden":
        return Finding(path, "unknown key", _cure_for_unknown(path))
    if shape is None:
        return Finding(path, error["msg"][:1].lower() + error["msg"][1:], "see `outpost config explain`")
    if kind == "missing":
        return Finding(path, "is required", f"add {path[-1]}: {shape.form.example} ({shape.help.rstrip('.')})")
    if kind == "literal_error":
        return Finding(path, f"expected {shape.form.expected}, found {_shown(error)}", _cure_for_choice(error, shape))
    if kind in _BOUND_WORDS:
        name, words = _BOUND_WORDS[kind]
        limit = shape.form.render(context[name])
        return Finding(path, f"must be {words} {limit}", f"allowed is {shape.bounds}")
    if kind in ("too_short", "string_too_short"):
        return Finding(path, "is empty", f"write at least one entry, e.g. {shape.form.example}")
    if kind == "string_too_long":
        return Finding(path, f"longer than {context['max_length']} characters", "write a shorter text")
    return Finding(path, f"expected {shape.form.expected}, found {_shown(error)}", _cure_for_type(shape))


def _shown(error: ErrorDetails) -> str:
    value: Any = error.get("input")
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, (list, tuple)) else quote(value)


def _cure_for_type(shape: Shape) -> str:
    if shape.is_section:
        return f"write the keys of {shape.key.rpartition('.')[2]} below it, e.g. {next(iter(shape.children))}: …"
    if shape.item is not None and shape.item.is_section:
        return "start each entry with '- ' on a line of its own, or write [] for none"
    return f"write {shape.form.expected}, e.g. {shape.form.example}"


def _cure_for_choice(error: ErrorDetails, shape: Shape) -> str:
    value = error.get("input")
    meant = suggest(value, shape.choices) if isinstance(value, str) else None
    return f"did you mean {meant}?" if meant else f"write e.g. {shape.form.example}"


def _cure_for_unknown(path: Path) -> str:
    parent = at_path(path[:-1])
    name = str(path[-1])
    known = parent.children if parent is not None else {}
    if name in known:  # one of several alternatives, of which another one was chosen
        return "it does not go together with the other keys here: remove it"
    meant = suggest(name, known)
    if meant is not None:
        return f"did you mean {meant}?"
    elsewhere = [shape.key for shape in root().walk() if shape.key.rpartition(".")[2] == name]
    if len(elsewhere) == 1:
        return f"did you mean {elsewhere[0]}? Otherwise remove it"
    where = dotted(path[:-1]) or "the top level"
    return f"remove it; known at {where}: {', '.join(known)}"
