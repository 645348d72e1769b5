"""CARD.md of a packed model: what it is, what trained it, what it is worth, from its manifest alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from appliance.guards.manifest import Manifest


def _percent(value: float | str) -> str:
    return value if isinstance(value, str) else f"{100 * value:.1f} %"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |"]
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def card(manifest: Manifest, notes: str, goals: Mapping[str, str]) -> str:
    """The card: `notes` is the part that people wrote (notes.md), `goals` say what each score was to reach."""
    lines = [f"# {manifest.title}", "", manifest.description, ""]
    size = sum(file.size for file in manifest.files.values()) / 1e6
    facts = [
        ("name, version", f"`{manifest.name}` {manifest.version}"),
        ("licence", manifest.licence),
        ("made from", manifest.base),
        ("files", f"{', '.join(manifest.files)}; {size:.1f} MB, sha256 in manifest.yaml"),
        (
            "reads",
            f"windows of {manifest.reading.window} word pieces with {manifest.reading.overlap} shared, any length",
        ),
    ]
    lines += _table(("", ""), facts)
    lines += [notes.strip(), "", "## Scores", ""]
    lines += [
        "Measured by `make guard-eval` with these files, one threshold a detector for all sets. The last column",
        "says how many texts, or spans, a share is of.",
        "",
    ]
    rows: list[tuple[str, ...]] = []
    for name, value in manifest.scores.items():
        task, _, what = name.partition(": ")
        rows.append((task, what, goals.get(name, ""), _percent(value), str(manifest.sizes.get(name, ""))))
    lines += _table(("task", "what", "goal", "measured", "of"), rows)
    lines += ["## Thresholds", ""]
    lines += [
        "Probability from which a label is told, by the share of honest texts (of the calibration rows) told wrongly.",
        "",
    ]
    rows = []
    for name, detector in manifest.detectors.items():
        if detector.kind == "spans":
            rows.append((name, "spans", "", "", "", f"{detector.threshold:.3f}"))
            continue
        for number, label in enumerate(detector.labels):
            scale = detector.scales.get(label)
            told = [f"{scale.thresholds[rate]:.3f}" if scale else "" for rate in ("0.1%", "0.5%", "1%")]
            rows.append((name, label, *told, f"{detector.threshold:.3f}" if number == 0 else ""))
    lines += _table(("detector", "label", "0.1 %", "0.5 %", "1 %", "default"), rows)
    lines += ["## What trained it", ""]
    if not manifest.training:
        return "\n".join([*lines, "Nothing but what its base was trained with."]) + "\n"
    lines += _table(
        ("set", "rows an epoch", "licence", "origin"),
        [(one.name, str(one.rows), one.licence, one.origin) for one in manifest.training],
    )
    return "\n".join(lines).rstrip() + "\n"


def write_card(folder: Path, manifest: Manifest, goals: Mapping[str, str]) -> None:
    """Write CARD.md beside the manifest, with what notes.md there says."""
    notes = folder / "notes.md"
    text = notes.read_text(encoding="utf-8") if notes.is_file() else ""
    (folder / "CARD.md").write_text(card(manifest, text, goals), encoding="utf-8")
