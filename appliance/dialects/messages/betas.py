"""Anthropic's betas: what a client asks for in the header `anthropic-beta`, and what of it a target gets. Pure.

Claude Code sends a bundle of them with each request. One that a target does not know makes it refuse the request, and
one that it does know may reach out of the site or keep something there; so only what a provider's row or its settings
allow goes out, and the rest is left out. Fields of the body that need a beta are refused by name where it is not
allowed; see `FEATURES`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

HEADER = "anthropic-beta"
DEFAULT = "default"
"""In a list of patterns: those of the row."""

_MOST = 64
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")

FEATURES: dict[str, tuple[str, ...]] = {
    "context_management": ("context-management-2025-06-27",),
    "task_budget": ("task-budgets-2026-03-13",),
    "mcp_servers": ("mcp-client-2025-11-20",),
    "container": ("code-execution-2025-08-25", "skills-2025-10-02"),
}
"""Feature that a request may need → the betas of which any gives it."""
_IMPLIED = ("context_management", "task_budget")
"""Features whose beta is asked for where the body needs it and the header does not say so."""


def read(header: str | None) -> tuple[str, ...]:
    """The betas that a client asks for, each once. What no beta can be called is left out."""
    if not header:
        return ()
    named = [name for name in map(str.strip, header.split(",")) if _NAME.fullmatch(name)]
    return tuple(dict.fromkeys(named))[:_MOST]


def interleaved(betas: Sequence[str] | None) -> bool:
    """Whether thinking between calls is asked for, whose budget is for all of a turn and so not bound by one answer."""
    return any(name.startswith("interleaved-thinking-") for name in betas or ())


class Betas:
    """What a target may be asked for."""

    def __init__(self, patterns: Iterable[str] = (), always: str | None = None) -> None:
        """patterns: such as `interleaved-thinking-*`. always: the header as the settings write it for each request."""
        self._always = read(always)
        self._allowed = re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)")
        self.features = frozenset(
            [feature for feature, names in FEATURES.items() if any(map(self._allowed.match, names))]
        )
        """Those of FEATURES."""

    def without(self, wanted: Sequence[str] | None) -> list[str]:
        """Of those that a client wants, those that do not go out."""
        return [name for name in wanted or () if not self._allowed.match(name)]

    def header(self, wanted: Sequence[str] | None, needed: Iterable[str] = ()) -> str:
        """The header's value, "" for none. `needed`: features that the body asks for."""
        found = [*self._always, *(name for name in wanted or () if self._allowed.match(name))]
        for feature in needed:
            name = FEATURES[feature][0]
            if feature in _IMPLIED and not any(each.startswith(name[:-10]) for each in found):
                found.append(name)
        return ",".join(dict.fromkeys(found))


NONE = Betas()


def patterns(own: Iterable[str], given: Sequence[str] | None) -> tuple[str, ...]:
    """`own`: of a row. `given`: of the settings, where DEFAULT stands for `own`; None = they say nothing."""
    if given is None:
        return tuple(own)
    return tuple(dict.fromkeys([each for name in given for each in (own if name == DEFAULT else (name,))]))
