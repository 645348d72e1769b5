"""Names of tools: what a client calls a tool, and what a target that knows functions alone calls it. Pure.

A namespace is part of its functions' names there, as in the names that clients give tools of MCP servers by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

import msgspec

DEFAULT = "functions"
"""The namespace of what stands in none."""
_MOST = 64
"""Characters of a function's name."""
_HASHED = 8
_NOT_ALLOWED = re.compile(r"[^a-zA-Z0-9_-]")


class Name(msgspec.Struct, frozen=True):
    """What a client calls a tool."""

    name: str
    namespace: str | None = None
    custom: bool = False

    def fields(self) -> dict[str, str]:
        """As a call has them."""
        return {"name": self.name} if self.namespace is None else {"name": self.name, "namespace": self.namespace}


Names = Mapping[str, Name]
"""Names of functions, and whose they are where clients call them otherwise, or they are no functions."""


def flat(namespace: str | None, name: str) -> str:
    """The name of a function that stands for a tool of a namespace. Always the same for the same one."""
    if namespace in (None, "", DEFAULT):
        return name
    joined = f"{namespace}__{name}"
    made = _NOT_ALLOWED.sub("_", joined)
    if made == joined and len(made) <= _MOST:
        return made
    return f"{made[: _MOST - _HASHED - 1]}_{sha256(joined.encode()).hexdigest()[:_HASHED]}"


def names_of(tools: Iterable[Mapping[str, Any]] | None) -> dict[str, Name]:
    """Of a client's tools, which are sound."""
    found: dict[str, Name] = {}
    for tool in tools or ():
        kind = tool.get("type")
        if kind == "custom":
            found[tool["name"]] = Name(tool["name"], custom=True)
        elif kind == "namespace":
            space = None if tool["name"] == DEFAULT else tool["name"]
            for inner in tool["tools"]:
                custom = inner.get("type") == "custom"
                if space is not None or custom:
                    found[flat(space, inner["name"])] = Name(inner["name"], space, custom)
    return found
