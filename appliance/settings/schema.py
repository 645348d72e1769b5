"""The settings: every key of `outpost.yaml`, declared once with its type, default, unit and help.

Models are frozen and hold plain values (float seconds, int bytes, tuples). `loader.load` makes a
`Settings`; its classes can also be built in code with the same checks of form.
A key marked `restart` in `json_schema_extra` cannot be changed while the process runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from appliance.settings.database_url import DatabaseUrl, parse_postgres
from appliance.settings.limiting import Admission, Limit, Price
from appliance.settings.people import FixedKey, Identity
from appliance.settings.providers import Provider
from appliance.settings.recording import Records
from appliance.settings.routing import Route
from appliance.settings.secrets import SecretRef
from appliance.settings.section import Section
from appliance.settings.serving import Deployment, default_deployments, routes_to
from appliance.settings.telemetry import Telemetry
from appliance.settings.values import (
    Address,
    Duration,
    FilePath,
    Integer,
    Listen,
    Size,
    Switch,
    Word,
    refuse,
)

__all__ = ["FixedKey", "Identity", "Settings"]

_PRICES = (
    "What targets cost. Without an entry, a model in a cloud costs what the release knows of it, and all else nothing."
)
_RESTART: dict[str, Any] = {"restart": True}


class Tls(Section):
    """A certificate and its key, both PEM files."""

    cert: FilePath = Field(
        description="PEM file with the certificate, followed by its intermediates.", json_schema_extra=_RESTART
    )
    key: FilePath = Field(
        description="PEM file with the certificate's key, not encrypted.",
        examples=["/etc/outpost/tls.key"],
        json_schema_extra=_RESTART,
    )


class Server(Section):
    """The public listener, where clients connect."""

    listen: Listen = Field(
        default=Address("127.0.0.1", 8080),
        description="Address of the public API; port 0 takes any free port.",
        json_schema_extra=_RESTART,
    )
    tls: Tls | None = Field(
        default=None,
        description="Certificate for https on both listeners, `console.listen` too; left out, plain http.",
        examples=[{"cert": "/etc/outpost/tls.crt", "key": "/etc/outpost/tls.key"}],
        json_schema_extra=_RESTART,
    )
    max_body: Size = Field(default=20 << 20, ge=1 << 10, le=1 << 30, description="Largest request body.")
    max_json_depth: Integer = Field(
        default=64, ge=8, le=512, description="Deepest nesting of a JSON body.", json_schema_extra={"unit": "levels"}
    )
    header_timeout: Duration = Field(
        default=10.0, ge=0.01, le=3600.0, description="Longest time for the head of a request to arrive."
    )
    body_timeout: Duration = Field(
        default=30.0, ge=0.01, le=3600.0, description="Longest time for the body of a request to arrive."
    )
    write_timeout: Duration = Field(
        default=30.0, ge=0.01, le=3600.0, description="Longest time that a client may take no bytes of its answer."
    )
    drain_timeout: Duration = Field(
        default=20.0, ge=0.0, le=3600.0, description="Longest time that running requests get to finish at shutdown."
    )
    max_connections: Integer = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="Most client connections at a time; further ones are closed.",
        json_schema_extra={"unit": "connections"},
    )


class Console(Section):
    """The operator's listener: console, admin API, metrics."""

    listen: Listen = Field(
        default=Address("127.0.0.1", 8081),
        examples=["127.0.0.1:8081"],
        description="Address of the operator API; keep it on a network that only operators reach.",
        json_schema_extra=_RESTART,
    )


class Database(Section):
    """Where keys and records are kept."""

    url: DatabaseUrl = Field(
        default="sqlite",
        description=(
            '"sqlite" is the file outpost.db in data_dir; sqlite+aiosqlite:///PATH is another file; '
            "postgresql://USER@HOST/DATABASE is a PostgreSQL server, with sslmode, sslrootcert and passfile as in "
            "libpq. Left out, sslmode is verify-full, except on loopback. No transaction pooler may stand in between: "
            "the writer holds a lock of its session."
        ),
        json_schema_extra=_RESTART,
    )
    password: SecretRef | None = Field(
        default=None,
        description="Password of the PostgreSQL user; left out where the server asks for none, or with passfile.",
        examples=[{"env": "OUTPOST_DB_PASSWORD"}],
        json_schema_extra=_RESTART,
    )
    backup: Annotated[Literal["pg_dump", "external"], Word] = Field(
        default="pg_dump",
        description=(
            "Who copies a PostgreSQL database before an update changes it: pg_dump, into data_dir/backups, or the site "
            "by itself. A SQLite file is always copied."
        ),
        json_schema_extra=_RESTART,
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.url.startswith("sqlite"):
            for name, idle in (("password", None), ("backup", "pg_dump")):
                if getattr(self, name) != idle:
                    raise refuse(f"{name} has no use with SQLite", f"remove {name}, or name a PostgreSQL server as url")
        elif self.password is not None and parse_postgres(self.url).passfile is not None:
            raise refuse("both password and passfile are given", "leave one of them")
        return self


class Log(Section):
    """What the process writes to its log."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Word] = Field(
        default="info", description="Least severe message that is written."
    )
    format: Annotated[Literal["json", "text"], Word] = Field(
        default="json",
        description="Form of a line: json for machines, text for people.",
        json_schema_extra=_RESTART,
    )
    access: Switch = Field(default=True, description="Write one line a request.")


class CatalogueSettings(Section):
    """Where models are found."""

    paths: tuple[FilePath, ...] = Field(
        default=(),
        description="Further folders with manifests, beside the bundled ones and data_dir/models.",
        examples=[["/srv/models"]],
    )


class Settings(Section):
    """All settings of one appliance."""

    server: Server = Field(default_factory=Server, description="The public listener, where clients connect.")
    console: Console = Field(default_factory=Console, description="The operator's listener.")
    data_dir: FilePath = Field(
        default=Path("outpost-data"),
        description="Folder for everything that is kept. The variable OUTPOST_DATA_DIR changes the default.",
        examples=["/var/lib/outpost"],
        json_schema_extra=_RESTART,
    )
    offline: Switch = Field(default=False, description="Refuse every connection that leaves the site.")
    database: Database = Field(default_factory=Database, description="Where keys and records are kept.")
    log: Log = Field(default_factory=Log, description="What the process writes to its log.")
    identity: Identity = Field(default_factory=Identity, description="Who may ask.")
    catalogue: CatalogueSettings = Field(default_factory=CatalogueSettings, description="Where models are found.")
    deployments: tuple[Deployment, ...] = Field(
        default_factory=default_deployments,
        description="Models that this box runs. Left out, the two small bundled models; [] runs none.",
        examples=[[{"name": "small", "model": "smollm2-135m-instruct"}]],
    )
    providers: tuple[Provider, ...] = Field(
        default=(),
        description="Endpoints that somebody else runs.",
        examples=[[{"name": "lab", "base_url": "http://10.0.0.5:8000/v1", "zone": "on_prem"}]],
    )
    routes: tuple[Route, ...] = Field(
        # Pydantic hands over the fields validated before this one.
        default_factory=lambda data: routes_to(data["deployments"]),
        description="Model names that clients may ask for. Left out, one route a deployment, under its name.",
        examples=[[{"model": "chat", "targets": [{"deployment": "small"}]}]],
    )

    limits: tuple[Limit, ...] = Field(default=(), description="How much may be asked for.")
    prices: tuple[Price, ...] = Field(default=(), description=_PRICES)
    admission: Admission = Field(default_factory=Admission, description="Waiting for a target that is busy.")
    records: Records = Field(default_factory=Records, description="What is kept of requests.")
    telemetry: Telemetry = Field(default_factory=Telemetry, description="Metrics and traces.")

    @property
    def database_url(self) -> str:
        """The SQLAlchemy address, with `sqlite` spelled out."""
        if self.database.url == "sqlite":
            return f"sqlite+aiosqlite:///{self.data_dir / 'outpost.db'}"
        return self.database.url
