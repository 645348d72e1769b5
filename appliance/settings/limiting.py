"""How much may be asked for, what it costs, and who waits for whom."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from appliance.settings.admission import Admission
from appliance.settings.rates import BudgetsField, NamesField, QuotasField, Usd, Zone
from appliance.settings.section import Section
from appliance.settings.values import Integer, Name, Text, Word, refuse

__all__ = ["Admission", "Limit", "Match", "Price"]

Scope = Literal["organization", "team", "user", "service_account", "key", "model", "route", "provider", "tag", "box"]

MEASURES = ("requests", "input_tokens", "output_tokens", "tokens", "usd")
"""What can be counted, in the order of demands' vectors."""


class Match(Section):
    """Whom a limit applies to. All keys that are given have to fit."""

    organization: NamesField | None = Field(default=None, description="Names or ids of organisations.")
    team: NamesField | None = Field(default=None, description="Names or ids of teams.")
    user: NamesField | None = Field(default=None, description="Names or ids of users.")
    service_account: NamesField | None = Field(default=None, description="Names or ids of service accounts.")
    key: NamesField | None = Field(default=None, description="Names or ids of API keys.")
    model: NamesField | None = Field(
        default=None, description="Targets: a deployment's name, or provider/model.", examples=["lab/llama-3.3-70b"]
    )
    route: NamesField | None = Field(
        default=None, description="Model names that clients ask for (of a route, not its aliases).", examples=["chat"]
    )
    provider: NamesField | None = Field(default=None, description="Names of providers.", examples=["lab"])
    tag: NamesField | None = Field(default=None, description="Tags that the caller sent.", examples=["nightly"])


class Limit(Section):
    """One limit over one scope. All limits that apply to a request hold together."""

    name: Name | None = Field(
        default=None,
        description="Name of the limit, as refusals show it; left out, made from scope and match.",
        examples=["research-tokens"],
    )
    scope: Annotated[Scope, Word] = Field(
        description="What is counted apart: with team, each team has a counter of its own; box is one for all."
    )
    match: Match = Field(default_factory=Match, description="Whom it applies to; left out, everybody.")
    requests: QuotasField | None = Field(default=None, description="Most requests per time.")
    input_tokens: QuotasField | None = Field(
        default=None, description="Most tokens of prompts per time.", examples=["1_000_000/day"]
    )
    output_tokens: QuotasField | None = Field(
        default=None, description="Most tokens of answers per time.", examples=["200_000/day"]
    )
    tokens: QuotasField | None = Field(
        default=None, description="Most tokens per time, of prompts and answers together.", examples=["2_000_000/day"]
    )
    usd: BudgetsField | None = Field(default=None, description="Most money per time, by `prices`.")
    window: Annotated[Literal["rolling", "calendar"], Word] | None = Field(
        default=None,
        description="rolling: in any stretch of that length; calendar: from the full hour, midnight, Monday or the "
        "first of the month. Left out, calendar for days, weeks and months, rolling for all else.",
    )
    timezone: Zone = Field(default="UTC", description="Time zone in which calendar windows begin.")
    in_flight: Integer | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Most requests under way at the same time.",
        json_schema_extra={"unit": "requests"},
    )

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        given = [name for name in MEASURES if getattr(self, name) is not None]
        if not given and self.in_flight is None:
            raise refuse("limits nothing", f"add one of {', '.join(MEASURES)}, in_flight, e.g. requests: 600/minute")
        if self.window == "calendar":
            for name in given:
                for quota in getattr(self, name):
                    if quota.unit is None:
                        raise refuse(
                            f"{name}: the calendar has no period of {quota.period}",
                            "write second, minute, hour, day, week or month, or window: rolling",
                        )
        return self


class Price(Section):
    """What a target costs. What is left out costs nothing."""

    target: Text = Field(
        min_length=1, max_length=320, description="Deployment, or provider/model.", examples=["lab/llama-3.3-70b"]
    )
    input: Usd = Field(default=0, ge=0, description="US dollars for a million tokens of prompts.")
    output: Usd = Field(default=0, ge=0, description="US dollars for a million tokens of answers.")
    cached: Usd | None = Field(
        default=None, ge=0, description="US dollars for a million tokens read from a cache; left out, as input."
    )
    cache_write: Usd | None = Field(
        default=None, ge=0, description="US dollars for a million tokens put into a cache; left out, as input."
    )
    reasoning: Usd | None = Field(
        default=None, ge=0, description="US dollars for a million tokens of reasoning; left out, as output."
    )
    gpu_second: Usd = Field(default=0, ge=0, description="US dollars for a second of work on this box.")
    request: Usd = Field(default=0, ge=0, description="US dollars for a request.")
