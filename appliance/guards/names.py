"""The guard models that ship with Outpost, by name."""

from __future__ import annotations

SHIPPED = "outpost-guard"
"""Prompt injection, toxicity and personal data."""
GROUNDED = "outpost-grounded"
"""Whether an answer speaks of something else than the given documents; experimental."""
