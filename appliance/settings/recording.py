"""What is kept of requests, for how long, and where it is sent."""

from __future__ import annotations

from appliance.settings.section import Section


class Records(Section):
    """What is kept of requests."""
