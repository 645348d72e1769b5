"""What must hold between keys of `records`. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from appliance.settings.document import Finding
from appliance.settings.schema import Settings
from appliance.settings.units import format_duration

_MAX_NAME = 48
"""Characters of an exporter's name: how far it has come is kept under a name of 64 with a prefix."""


def check(settings: Settings) -> Iterator[Finding]:
    """What cannot work."""
    yield from _retention(settings)
    yield from _rules(settings)
    yield from _exporters(settings)


def warn(settings: Settings) -> Iterator[Finding]:
    """What works, but is probably not meant."""
    for index, exporter in enumerate(settings.records.export):
        if exporter.transport == "tcp" and not _is_local(exporter.host):
            message = f"the records of {exporter.name} cross the network unencrypted"
            yield Finding(("records", "export", index, "transport"), message, "write transport: tls")


def _retention(settings: Settings) -> Iterator[Finding]:
    retention = settings.records.retention
    if retention.metadata < retention.minimum:
        yield Finding(
            ("records", "retention", "metadata"),
            f"{format_duration(retention.metadata)} is less than the {format_duration(retention.minimum)} of "
            "records.retention.minimum",
            f"write {format_duration(retention.minimum)} or more, or lower the minimum if the law allows it",
        )
    if retention.content > retention.metadata:
        yield Finding(
            ("records", "retention", "content"),
            f"texts would outlive the records that they belong to ({format_duration(retention.metadata)})",
            f"write {format_duration(retention.metadata)} or less",
        )


def _rules(settings: Settings) -> Iterator[Finding]:
    routes = {route.model: route.model for route in settings.routes}
    routes |= {alias: route.model for route in settings.routes for alias in route.aliases}
    seen: dict[tuple[str | None, ...], int] = {}
    for index, rule in enumerate(settings.records.content_rules):
        path = ("records", "content_rules", index)
        who = (rule.team, rule.route, rule.organization)
        if who in seen:
            yield Finding(path, f"is for the same requests as entry {seen[who]}", "remove one of the two")
        seen.setdefault(who, index)
        if rule.route is None:
            continue
        model = routes.get(rule.route)
        if model is None:
            known = ", ".join(route.model for route in settings.routes) or "none"
            yield Finding((*path, "route"), f"there is no route {rule.route!r}", f"name one of the routes: {known}")
        elif model != rule.route:
            yield Finding((*path, "route"), f"{rule.route!r} is an alias", f"write the route's model: {model}")


def _exporters(settings: Settings) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, exporter in enumerate(settings.records.export):
        path = ("records", "export", index)
        if exporter.name in seen:
            yield Finding((*path, "name"), f"there are two of the exporter {exporter.name!r}", "give one another name")
        seen.add(exporter.name)
        if len(exporter.name) > _MAX_NAME:
            yield Finding((*path, "name"), f"is longer than {_MAX_NAME} characters", "choose a shorter name")
        if exporter.transport == "tcp":
            for name in ("ca", "cert", "key"):
                if getattr(exporter, name) is not None:
                    yield Finding((*path, name), "has no use without tls", "write transport: tls, or remove it")
        elif exporter.key is not None and exporter.cert is None:
            yield Finding((*path, "key"), "belongs to no certificate", "add cert, or remove the key")


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
