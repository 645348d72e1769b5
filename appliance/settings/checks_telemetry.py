"""What must hold between keys of `telemetry`. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

from appliance.settings.document import Finding
from appliance.settings.schema import Settings

_SIGNAL_PATHS = ("/v1/traces", "/v1/metrics", "/v1/logs")


def check(settings: Settings) -> Iterator[Finding]:
    """What cannot work."""
    otlp = settings.telemetry.otlp
    if otlp is None:
        return
    parts = urlsplit(otlp.endpoint)
    for path in _SIGNAL_PATHS:
        if parts.path.endswith(path):
            cure = f"write {otlp.endpoint.removesuffix(path)}"
            yield Finding(("telemetry", "otlp", "endpoint"), f"ends in {path}, which is added by itself", cure)
    if otlp.ca is not None and parts.scheme != "https":
        message = f"is not needed for {parts.scheme}: there is no certificate to check"
        yield Finding(("telemetry", "otlp", "ca"), message, "remove it, or use https in endpoint")
    seen: dict[str, str] = {}
    for name in otlp.headers:
        if name.lower() in seen:
            message = f"{name} and {seen[name.lower()]} are the same header"
            yield Finding(("telemetry", "otlp", "headers", name), message, "remove one")
        seen[name.lower()] = name


def warn(settings: Settings) -> Iterator[Finding]:
    """What works, but is probably not meant."""
    host = settings.console.listen.host
    if settings.telemetry.metrics.open and not _is_loopback(host):
        yield Finding(
            ("telemetry", "metrics", "open"),
            f"everybody who reaches {settings.console.listen} can read the metrics",
            "write false and give the scraper a key of the role operator",
        )
    otlp = settings.telemetry.otlp
    if otlp is None:
        return
    parts = urlsplit(otlp.endpoint)
    host = parts.hostname or ""
    if settings.offline and not _is_on_site(host):
        yield Finding(
            ("telemetry", "otlp", "endpoint"),
            f"{host} may be off the site, but offline is true: it would be told about every request",
            "name a collector on the site by its address, or remove otlp",
        )
    if otlp.headers and parts.scheme == "http" and not _is_loopback(host):
        yield Finding(
            ("telemetry", "otlp", "endpoint"), "the headers' secrets cross the network unencrypted", "use https"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_on_site(host: str) -> bool:
    """Whether an address cannot be one of the Internet's; of a name that is not known."""
    try:
        address = ip_address(host)
    except ValueError:
        return _is_loopback(host)
    return address.is_private or address.is_loopback or address.is_link_local
