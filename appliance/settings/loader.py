"""From a file to `Settings`, or to everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from appliance.settings.checks import check, warn
from appliance.settings.document import MAX_BYTES, Document, Finding, parse
from appliance.settings.machine import check_machine, warn_machine
from appliance.settings.problems import Problem, SettingsError, from_pydantic
from appliance.settings.schema import Settings
from appliance.settings.shape import dotted

DEFAULT_FILE = "outpost.yaml"
BUILT_IN = "(built-in defaults)"
"""Stands for the file in messages when there is none."""


@dataclass(frozen=True)
class Loaded:
    """Settings that passed every check, and where they came from."""

    settings: Settings
    path: Path | None
    warnings: tuple[Problem, ...] = ()
    document: Document = field(default_factory=Document, repr=False)

    def locate(self, findings: Iterable[Finding]) -> list[Problem]:
        """Findings of a later check (the catalogue's) with file and line."""
        return _locate(findings, self.document, _name(self.path))


def choose_file(given: Path | None, env: Mapping[str, str], folder: Path) -> Path | None:
    """The file to load: the given one, else $OUTPOST_CONFIG, else outpost.yaml in `folder`, else None."""
    if given is not None:
        return given
    if env.get("OUTPOST_CONFIG"):
        return Path(env["OUTPOST_CONFIG"])
    candidate = folder / DEFAULT_FILE
    return candidate if candidate.exists() else None


def load(path: Path | None, env: Mapping[str, str], *, machine: bool = True) -> Loaded:
    """Read and check a settings file; None is the embedded defaults. Raises SettingsError.

    `machine=False` leaves out what depends on this machine: secrets, certificates, folders.
    """
    raw = b"" if path is None else _read(path)
    document = parse(raw)
    name = _name(path)
    settings, findings = _validate(document, env, machine=machine)
    if settings is None:
        raise SettingsError(_locate(findings, document, name))
    warnings = warn(settings) + (warn_machine(settings) if machine else [])
    return Loaded(settings, path, tuple(_locate(warnings, document, name)), document)


def from_mapping(data: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Settings:
    """Settings made in code, with the same checks as a file's. Raises SettingsError."""
    document = Document(data=dict(data))
    settings, findings = _validate(document, env or {}, machine=env is not None)
    if settings is None:
        raise SettingsError(_locate(findings, document, "(settings)"))
    return settings


def _validate(document: Document, env: Mapping[str, str], *, machine: bool) -> tuple[Settings | None, list[Finding]]:
    findings = list(document.findings)
    data = {} if document.data is None else document.data
    if not isinstance(data, dict):
        line = document.lines.get((0,), 1)
        findings.append(Finding((), "the file holds no settings", "write sections such as server: and routes:", line))
        return None, findings
    if findings and not data:
        return None, findings
    if data.get("data_dir") is None and "data_dir" not in data and env.get("OUTPOST_DATA_DIR"):
        data = {**data, "data_dir": env["OUTPOST_DATA_DIR"]}
    try:
        settings = Settings.model_validate(data, context={"env": env})
    except ValidationError as error:
        return None, findings + from_pydantic(error.errors(include_url=False))
    findings += check(settings)
    if machine:
        findings += check_machine(settings, env)
    return (None if findings else settings), findings


def _locate(findings: Iterable[Finding], document: Document, file: str) -> list[Problem]:
    problems = []
    for finding in findings:
        line = finding.line if finding.line is not None else document.line_of(finding.path)
        problems.append(Problem(file, line, dotted(finding.path), finding.message, finding.cure))
    return sorted(problems, key=lambda problem: problem.line or 0)


def _name(path: Path | None) -> str:
    return BUILT_IN if path is None else str(path)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        problem = Problem(str(path), None, "", f"cannot be read ({reason})", "correct the path or the permissions")
        raise SettingsError([problem]) from None
