"""Metrics and traces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from appliance.settings.document import Plain
from appliance.settings.secrets import SecretRef
from appliance.settings.section import Section
from appliance.settings.units import quote
from appliance.settings.values import BaseUrl, Duration, FilePath, Form, Integer, Switch, Word, refuse

_RESTART: dict[str, Any] = {"restart": True}
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", re.ASCII)
_NUMBER = re.compile(r"\d{1,3}(?:\.\d{1,9})?|\.\d{1,9}", re.ASCII)
_OURS = frozenset({"content-type", "content-encoding", "content-length", "host", "user-agent", "transfer-encoding"})

SHARE = Form("a share from 0 to 1", "0.1")
HEADERS = Form("a mapping of header names to secrets", "{authorization: {env: COLLECTOR_AUTH}}")


def _read_share(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, Plain) and _NUMBER.fullmatch(value):
        return float(value)
    found = f", found {quote(value)}" if isinstance(value, str) else ""
    raise refuse(f"expected {SHARE.expected}{found}", f"write e.g. {SHARE.example}")


def _check_headers(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise refuse("expected a mapping of header names to secrets", f"write e.g. {HEADERS.example}")
    for name in value:
        if not isinstance(name, str) or not _HEADER.fullmatch(name):
            raise refuse("holds a name that no header can have", "use letters, digits and '-'")
        if name.lower() in _OURS:
            raise refuse(f"sets the header {name}, which the exporter sets by itself", "remove it")
    return {str(name): member for name, member in value.items()}


Share = Annotated[
    float,
    BeforeValidator(_read_share),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1}),
    SHARE,
]


class MetricsPage(Section):
    """The page /metrics of the operator's listener."""

    open: Switch = Field(
        default=False,
        description="Show the metrics to everybody who reaches console.listen, without a key.",
        json_schema_extra=_RESTART,
    )


class Otlp(Section):
    """A collector that takes OpenTelemetry's protocol."""

    endpoint: BaseUrl = Field(
        description="Address of the collector, without /v1/traces and /v1/metrics, which are added.",
        examples=["http://127.0.0.1:4318"],
        json_schema_extra=_RESTART,
    )
    protocol: Annotated[Literal["http/protobuf"], Word] = Field(
        default="http/protobuf", description="How the collector is spoken to.", json_schema_extra=_RESTART
    )
    headers: Annotated[dict[str, SecretRef], BeforeValidator(_check_headers), HEADERS] = Field(
        default_factory=dict,
        description="Headers that are sent with everything, and where their values are found.",
        json_schema_extra=_RESTART,
    )
    sample: Share = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="Share of the requests of which a trace is sent; metrics count all of them.",
        json_schema_extra=_RESTART,
    )
    ca: FilePath | None = Field(
        default=None,
        description="PEM file with the certificates that the collector's own is checked by; left out, the usual ones.",
        examples=["/etc/outpost/collector-ca.pem"],
        json_schema_extra=_RESTART,
    )
    propagate: Switch = Field(
        default=False,
        description="Send the trace's id to providers (traceparent), so that they can link theirs to it.",
        json_schema_extra=_RESTART,
    )
    interval: Duration = Field(
        default=5.0,
        ge=0.05,
        le=300.0,
        description="Time between two sendings of traces; metrics are sent every ten of these.",
        json_schema_extra=_RESTART,
    )
    timeout: Duration = Field(
        default=10.0,
        ge=0.1,
        le=60.0,
        description="Longest time for one sending.",
        json_schema_extra=_RESTART,
    )
    queue: Integer = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="Most requests that wait to be told of; further ones are counted as dropped.",
        json_schema_extra={**_RESTART, "unit": "requests"},
    )


class Telemetry(Section):
    """Metrics and traces."""

    metrics: MetricsPage = Field(
        default_factory=MetricsPage, description="The page /metrics.", json_schema_extra=_RESTART
    )
    otlp: Otlp | None = Field(
        default=None,
        description="Collector for traces and metrics; left out, nothing is sent anywhere.",
        examples=[{"endpoint": "http://127.0.0.1:4318"}],
        json_schema_extra=_RESTART,
    )
