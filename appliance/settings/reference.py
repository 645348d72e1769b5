"""The reference page of all settings: `python -m appliance.settings.reference > docs/settings.md`."""

from __future__ import annotations

import sys

from appliance.settings.render import default_text
from appliance.settings.shape import Shape, root

_INTRO = """\
# Settings

Made from the schema by `python -m appliance.settings.reference > docs/settings.md`. Do not edit.

Outpost reads one YAML file: the one given with `--config`, else the one that the environment variable
`OUTPOST_CONFIG` names, else `outpost.yaml` in the current directory. Without a file it starts with the
defaults below. `outpost.example.yaml` lists every key.

| command | |
|---|---|
| `outpost config check` | says what is wrong, with line and cure: first all values, then the files that they name |
| `outpost config show` | every key with its effective value |
| `outpost config explain KEY` | what a key means, e.g. `outpost config explain routes.deadlines` |
| `outpost config schema` | JSON Schema of the file, for editors and pipelines |

**Durations** are a number and a unit: `ms`, `s`, `m`, `h`, `d`; several may follow each other, the largest first
(`1h30m`). A bare number is seconds.
**Sizes** are a number and a unit: `B`, `KiB`, `MiB`, `GiB`, `TiB` (1024) or `kB`, `MB`, `GB`, `TB` (1000). A bare
number is bytes.
**Secrets** are never in the file, only where to find them: `{env: NAME}` or `{file: PATH}`.
**Paths** that are relative are taken from the directory in which `outpost` runs; `~/` is the home folder.
**Words** without quotes are read as the key needs them: `off` is false for a switch and text for a name; `1_000` is a
thousand. Anchors, aliases and `<<` work. A key that is written twice or that does not exist is refused.

A changed file is applied by `SIGHUP` or `POST /admin/v1/reload`, all or nothing; a file with a fault leaves the old
one running. Keys marked **restart** keep their value until the process is started again.
"""

_HEAD = "| key | form | default | what it is |\n|---|---|---|---|\n"


def page() -> str:
    """The whole page as Markdown."""
    parts = [_INTRO]
    settings = [shape for shape in root().children.values() if shape.is_leaf]
    parts.append("## Top level\n\n" + _HEAD + "".join(_row(shape, shape.key) for shape in settings))
    for shape in root().children.values():
        if not shape.is_leaf:
            parts.append(_section(shape))
    return "\n".join(parts)


def _section(shape: Shape) -> str:
    rows = "".join(
        _row(leaf, leaf.key.removeprefix(shape.key).removeprefix("[]").removeprefix("."))
        for leaf in shape.walk()
        if leaf is not shape and (leaf.is_leaf or leaf.optional or leaf.item is not None)
    )
    heading = f"{shape.key} (a list)" if shape.item is not None else shape.key
    example = f"Example: `{shape.key}: {shape.form.example}`\n\n" if shape.item is not None else ""
    return f"## {heading}\n\n{shape.help}\n\n{example}{_HEAD}{rows}"


def _row(shape: Shape, name: str) -> str:
    restart = " **Restart.**" if shape.restart else ""
    bounds = f" {shape.bounds[:1].upper()}{shape.bounds[1:]}." if shape.bounds else ""
    form = shape.form.expected
    if shape.unit and shape.unit != shape.form.unit:
        form = f"{form} ({shape.unit})"
    default = default_text(shape)
    shown = default if default in ("required", "none") else f"`{default}`"
    return f"| `{name}` | {_cell(form)} | {_cell(shown)} | {_cell(shape.help)}{bounds}{restart} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
