"""Metrics and traces."""

from __future__ import annotations

from appliance.settings.section import Section


class Telemetry(Section):
    """Metrics and traces."""
