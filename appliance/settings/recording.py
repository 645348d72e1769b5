"""What is kept of requests, for how long, and where it is sent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from appliance.settings.section import Section
from appliance.settings.units import quote
from appliance.settings.values import (
    Duration,
    FilePath,
    Form,
    Integer,
    ModelName,
    Name,
    Size,
    Switch,
    Whom,
    Word,
    parse_address,
    refuse,
)

Content = Literal["none", "redacted", "full"]
"""none: only numbers are kept. redacted: texts with secrets and personal data replaced. full: texts as they were."""

DAY = 86400.0
HOST = Form("a host name or address", "siem.example.org")


def _read_host(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else ""
    try:
        # Whatever is a host beside a port is one without.
        return parse_address(f"[{text}]:1" if ":" in text and not text.startswith("[") else f"{text}:1").host
    except PydanticCustomError:
        shown = f", found {quote(text)}" if text else ""
        raise refuse(
            f"expected {HOST.expected}{shown}", f"write e.g. {HOST.example}, and the port under port"
        ) from None


Host = Annotated[str, BeforeValidator(_read_host), WithJsonSchema({"type": "string", "minLength": 1}), HOST]


class ContentRule(Section):
    """An exception from `records.content` for some requests. Of several that fit, the one that names more counts;
    then one that names a team before one that names a route before one that names an organization."""

    team: Whom | None = Field(default=None, description="Name or id of a team.", examples=["research"])
    route: ModelName | None = Field(default=None, description="Model name of a route.", examples=["chat"])
    organization: Whom | None = Field(default=None, description="Name or id of an organization.", examples=["default"])
    content: Annotated[Content, Word] = Field(description="What is kept of texts where the rule fits.")

    @model_validator(mode="after")
    def _names_something(self) -> ContentRule:
        if self.team is None and self.route is None and self.organization is None:
            raise refuse("names nobody", "add team, route or organization; for everybody, set records.content")
        return self


class Retention(Section):
    """How long records are kept."""

    metadata: Duration = Field(
        default=400 * DAY,
        ge=DAY,
        le=36500 * DAY,
        description="Longest time that records of requests and the ledger are kept.",
    )
    content: Duration = Field(
        default=30 * DAY, ge=60.0, le=36500 * DAY, description="Longest time that texts are kept."
    )
    responses: Duration = Field(
        default=30 * DAY,
        ge=60.0,
        le=36500 * DAY,
        description="Longest time that stored responses (/v1/responses) can be read and gone on with.",
    )
    minimum: Duration = Field(
        default=180 * DAY,
        ge=0.0,
        le=36500 * DAY,
        description="Time for which records must be kept by law: younger ones stay, even if the disk fills up.",
    )


class Exporter(Section):
    """A system to which records are sent as they come."""

    name: Name = Field(description="Name of the exporter; how far it has come is kept under it.", examples=["siem"])
    kind: Annotated[Literal["syslog"], Word] = Field(default="syslog", description="How records are sent.")
    format: Annotated[Literal["cef", "ocsf"], Word] = Field(default="cef", description="Form of a record.")
    host: Host = Field(description="Where the receiver is.")
    port: Integer = Field(
        default=6514,
        ge=1,
        le=65535,
        description="Port of the receiver.",
        json_schema_extra={"unit": "port number"},
    )
    transport: Annotated[Literal["tls", "tcp"], Word] = Field(
        default="tls", description="tls: encrypted, with the receiver's certificate checked. tcp: in the clear."
    )
    ca: FilePath | None = Field(
        default=None,
        description="PEM file with the authorities that the receiver's certificate may come from; else the system's.",
        examples=["/etc/outpost/siem-ca.crt"],
    )
    cert: FilePath | None = Field(
        default=None,
        description="PEM file with a certificate that the gateway shows, and its key if `key` is left out.",
        examples=["/etc/outpost/siem-client.crt"],
    )
    key: FilePath | None = Field(
        default=None, description="PEM file with that certificate's key.", examples=["/etc/outpost/siem-client.key"]
    )
    facility: Integer = Field(
        default=13,
        ge=0,
        le=23,
        description="Syslog facility; 13 is log audit, 16 to 23 are for local use.",
        json_schema_extra={"unit": "facility number"},
    )


class Records(Section):
    """What is kept of requests."""

    content: Annotated[Content, Word] = Field(
        default="none",
        description="What is kept of texts: none, redacted (secrets and personal data replaced) or full; encrypted.",
    )
    content_rules: tuple[ContentRule, ...] = Field(
        default=(),
        description="Exceptions for teams, routes and organizations; the rule that names most counts.",
        examples=[[{"team": "research", "content": "full"}]],
    )
    store_responses: Switch = Field(
        default=True,
        description="Keep answers of /v1/responses, encrypted, for who asked, unless the request says store: false. "
        "Off: none is kept, and none can be gone on with.",
    )
    retention: Retention = Field(default_factory=Retention, description="How long records are kept.")
    max_disk: Size = Field(
        default=50 << 30,
        ge=16 << 20,
        le=1 << 60,
        description="Most room that the database may take; the oldest texts go first, when it gets near.",
    )
    max_content: Size = Field(
        default=1 << 20,
        ge=1 << 10,
        le=64 << 20,
        description="Most that is kept of a request's or an answer's text; the rest is cut off.",
    )
    export: tuple[Exporter, ...] = Field(
        default=(),
        description="Systems to which records are sent as they come.",
        examples=[[{"name": "siem", "format": "cef", "host": "siem.example.org"}]],
    )
