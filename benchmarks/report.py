"""The numbers of one run, as a table for people, a page for the project, and JSON."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from benchmarks.load import Result

Subject = TypeVar("Subject")


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile; 0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Plan:
    """How much to measure and for how long."""

    quick: bool
    budget_s: float
    """Seconds of measuring, counted from `begin`; nothing is begun after them."""
    subjects: set[str] = field(default_factory=set)
    """Only these; empty = all."""
    cut: int = 0
    """Measurements that were left out for lack of time."""
    _deadline: float = field(default=0.0, init=False)

    def begin(self) -> None:
        """The subjects run (installing and starting them does not count); from here on time is short."""
        self._deadline = time.monotonic() + self.budget_s

    def seconds(self, full: float) -> float:
        return full / 4 if self.quick else full

    def turns(self, subjects: Sequence[Subject], full: int = 3) -> Iterator[tuple[int, Subject]]:
        """(round, subject): the subjects take turns, round after round, as long as there is time."""
        for turn in range(1 if self.quick else full):
            for subject in subjects:
                if time.monotonic() > self._deadline:
                    self.cut += 1
                else:
                    yield turn, subject

    def limit_s(self, wanted: float) -> float:
        """A limit for one load job: what is wanted, but not far beyond the end of the budget."""
        return max(5.0, min(wanted, self._deadline - time.monotonic() + 15))


@dataclass
class Cell:
    """All values of one measure for one subject."""

    unit: str
    higher_is_better: bool
    values: list[float] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)
    errors: int = 0
    requests: int = 0


@dataclass
class Table:
    """One benchmark's results: measure → subject → values, in the order in which they came."""

    name: str
    title: str
    reference: str = ""
    """The subject that the ratio column divides by."""
    goals: dict[str, str] = field(default_factory=dict)
    """What Outpost is to reach, by measure."""
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)
    subjects: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)
    cut: str = ""
    """What was left out for lack of time, if anything."""

    def describe(self, subject: str, does: str) -> None:
        self.subjects[subject] = does

    def skip(self, subject: str, reason: str) -> None:
        self.skipped[subject] = reason

    def add(
        self,
        measure: str,
        unit: str,
        subject: str,
        value: float,
        result: Result,
        *,
        note: str = "",
        higher_is_better: bool = False,
    ) -> None:
        """One value, with the load result it came from. A run in which nothing completed has errors but no value."""
        cell = self.cells.setdefault(measure, {}).setdefault(subject, Cell(unit, higher_is_better))
        cell.errors += result.failed
        cell.requests += result.completed + result.failed
        if result.completed:
            cell.values.append(value)
        if note:
            cell.notes.add(note)
        for reason, count in result.errors.items():
            self.trouble.append(f"{measure}, {subject}: {count} × {reason}")

    def rows(self) -> Iterator[list[str]]:
        """Measure, subject, min, median, max, ratio to the reference, errors, goal or note."""
        for measure, by_subject in self.cells.items():
            base = by_subject.get(self.reference)
            middle = statistics.median(base.values) if base and base.values else 0.0
            for subject, cell in by_subject.items():
                row = [f"{measure} [{cell.unit}]", subject]
                if cell.values:
                    median = statistics.median(cell.values)
                    row += [_number(min(cell.values)), _number(median), _number(max(cell.values))]
                    row.append(f"{median / middle:.2f}" if middle > 0 else "–")
                else:
                    row += ["–"] * 4
                row.append(f"{cell.errors} of {cell.requests}" if cell.errors else "0")
                remarks = [f"goal {self.goals[measure]}"] if subject == "Outpost" and measure in self.goals else []
                yield [*row, "; ".join([*remarks, *sorted(cell.notes)])]

    def text(self) -> str:
        """The table for a terminal."""
        rows = [self._header(), *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [self.title, ""]
        lines += ["  ".join(_pad(cell, widths[i], 2 <= i <= 6) for i, cell in enumerate(row)).rstrip() for row in rows]
        lines += [f"left out: {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [self.cut] if self.cut else []
        lines += [f"errors: {each}" for each in self.trouble[:20]]
        return "\n".join(lines) + "\n"

    def markdown(self) -> str:
        lines = [f"## {self.title}", ""]
        lines += [f"- **{name}**: {does}" for name, does in self.subjects.items()]
        lines += [f"- left out: {name} ({reason})" for name, reason in self.skipped.items()]
        lines += ["", "| " + " | ".join(self._header()) + " |", "|---|---|--:|--:|--:|--:|--:|---|"]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows()]
        if self.cut:
            lines += ["", self.cut]
        if self.trouble:
            lines += ["", "Errors seen:", "", *(f"- {each}" for each in self.trouble[:20])]
        return "\n".join(lines) + "\n"

    def data(self) -> dict[str, object]:
        measures = {
            measure: {
                subject: {
                    "unit": cell.unit,
                    "values": cell.values,
                    "errors": cell.errors,
                    "requests": cell.requests,
                    "notes": sorted(cell.notes),
                }
                for subject, cell in by_subject.items()
            }
            for measure, by_subject in self.cells.items()
        }
        return {"title": self.title, "reference": self.reference, "measures": measures, "skipped": self.skipped}

    def _header(self) -> list[str]:
        return ["measure", "subject", "min", "median", "max", f"÷ {self.reference}", "errors", "remarks"]


def machine() -> str:
    """The machine in words: processor, cores, memory, what matters for speed. No names of hosts."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "")
    flags = set(next((line for line in info.splitlines() if line.startswith("flags")), "").split())
    sets = [name for flag, name in (("avx2", "AVX2"), ("avx512f", "AVX-512"), ("amx_int8", "AMX")) if flag in flags]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores of {model or platform.machine()} ({', '.join(sets) or 'no vector sets known'}), "
        f"{memory_gib:.0f} GiB, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    )


_INTRODUCTION = """# Benchmarks

Written by `make bench`. Every row stands beside peers measured in the same run, on the same machine, turn by turn
(A B A B …). CPU is user and system time of a subject's whole process tree; the load generator and the mock upstream
run in processes of their own and are not counted, but they share the cores. The ratio divides the median by that of the
reference named in the column's head.
"""


def write_page(path: Path, tables: Sequence[Table], load: float) -> None:
    """Write the page, keeping the sections of benchmarks that were not part of this run."""
    kept = _sections(path.read_text()) if path.exists() else {}
    stamp = f"Measured {time.strftime('%Y-%m-%d')} on {machine()}; load average before the run {load:.1f}."
    for table in tables:
        kept[table.name] = f"{table.markdown()}\n{stamp}\n"
    parts = [_INTRODUCTION]
    parts += [f"<!-- begin {name} -->\n{text}<!-- end {name} -->\n" for name, text in sorted(kept.items())]
    path.write_text("\n".join(parts))


def _sections(page: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in page.split("<!-- begin ")[1:]:
        name, _, rest = part.partition(" -->\n")
        found[name] = rest.partition("<!-- end ")[0]
    return found


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:.2f}" if size < 10 else f"{value:.1f}" if size < 100 else f"{value:,.0f}"


def _pad(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)
