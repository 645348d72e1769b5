"""Who waits for whom at a busy target, and for how long."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from appliance.settings.section import Section
from appliance.settings.values import Duration, Integer, Word

Priority = Literal["interactive", "normal", "batch"]
"""Classes of work in the order of their urgency."""
PRIORITIES: tuple[Priority, ...] = get_args(Priority)


class MaxWait(Section):
    """How long requests may wait for a busy target."""

    interactive: Duration = Field(default=30.0, ge=0.0, le=604_800.0, description="Longest wait of interactive work.")
    normal: Duration = Field(default=60.0, ge=0.0, le=604_800.0, description="Longest wait of normal work.")
    batch: Duration = Field(default=86_400.0, ge=0.0, le=604_800.0, description="Longest wait of batch work.")


class Weights(Section):
    """Shares of a busy target."""

    interactive: Integer = Field(
        default=16, ge=1, le=1000, description="Share of interactive work.", json_schema_extra={"unit": "parts"}
    )
    normal: Integer = Field(
        default=4, ge=1, le=1000, description="Share of normal work.", json_schema_extra={"unit": "parts"}
    )
    batch: Integer = Field(
        default=1, ge=1, le=1000, description="Share of batch work.", json_schema_extra={"unit": "parts"}
    )


class Admission(Section):
    """Waiting for a target that is busy."""

    max_waiting: Integer = Field(
        default=1000,
        ge=0,
        le=1_000_000,
        description="Most requests of one class that may wait for one target; more are refused at once.",
        json_schema_extra={"unit": "requests"},
    )
    max_wait: MaxWait = Field(default_factory=MaxWait, description="Longest wait of a request, by its class.")
    weights: Weights = Field(
        default_factory=Weights,
        description="Shares of a busy target while all classes wait; the more urgent class goes first.",
    )
    default_priority: Annotated[Priority, Word] = Field(
        default="normal", description="Class of requests that do not say; see the header x-outpost-priority."
    )
    max_priority: Annotated[Priority, Word] = Field(
        default="interactive", description="Most urgent class that may be asked for; a key may be bound further."
    )
