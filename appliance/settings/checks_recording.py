"""What must hold between keys of `recording`. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.settings.document import Finding
from appliance.settings.schema import Settings


def check(settings: Settings) -> Iterator[Finding]:
    """What cannot work."""
    yield from ()
