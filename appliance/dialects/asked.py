"""What a client asked for: in the canonical form, and in its own dialect where that is another one."""

from __future__ import annotations

from typing import Any, NamedTuple


class Asked(NamedTuple):
    request: Any
    """The canonical request."""
    native: Any = None
    """The client's body as a struct of its dialect; None where that is the canonical form itself. A target that speaks
    the same dialect gets this one, so that nothing is lost on a way there and back."""
