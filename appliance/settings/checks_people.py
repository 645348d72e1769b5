"""What must hold between keys of `identity`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from appliance.settings.document import Finding, Path
from appliance.settings.people import Issuer, Limited
from appliance.settings.problems import suggest
from appliance.settings.routing import DeploymentTarget
from appliance.settings.schema import Settings

_SITE_SUFFIXES = (".local", ".localhost", ".internal", ".intranet", ".lan", ".corp", ".home.arpa", ".test")


def check(settings: Settings) -> Iterator[Finding]:
    """What cannot work."""
    identity = settings.identity
    for index, key in enumerate(identity.keys):
        yield from _limited(settings, ("identity", "keys", index), key)
    yield from _twice(("identity", "oidc"), "name", [each.name for each in identity.oidc])
    yield from _twice(("identity", "oidc"), "issuer", [each.issuer for each in identity.oidc])
    for index, issuer in enumerate(identity.oidc):
        yield from _issuer(("identity", "oidc", index), issuer)
    yield from _certificates(settings)


def warn(settings: Settings) -> Iterator[Finding]:
    """What works, but is probably not meant."""
    for index, issuer in enumerate(settings.identity.oidc):
        path: Path = ("identity", "oidc", index)
        host = issuer.jwks_host
        if settings.offline and host is not None and not on_site(host):
            message = f"offline is true, and the keys of {issuer.name} come from {host}, which looks like another site"
            yield Finding(
                (*path, "jwks"), message, "pin the keys with jwks: {file: PATH}, if the host is not on the site"
            )
        if issuer.roles and issuer.claims.role is None:
            yield Finding((*path, "roles"), "no claim is named that they could apply to", "set claims.role")
        if not issuer.roles and issuer.default_role is None:
            yield Finding(
                (*path, "default_role"), f"nobody from {issuer.name} gets a role", "set roles or default_role"
            )

    if settings.identity.client_ca is not None and not settings.identity.client_certificates:
        message = "no certificate lets anybody in"
        yield Finding(("identity", "client_ca"), message, "add entries to identity.client_certificates")


def is_loopback(host: str) -> bool:
    """Whether an address stays on this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def on_site(host: str) -> bool:
    """Whether a host looks like one of the premises: private addresses, and names that only a local server knows."""
    try:
        address = ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_SITE_SUFFIXES)
    return address.is_private or address.is_loopback or address.is_link_local


def _issuer(path: Path, issuer: Issuer) -> Iterator[Finding]:
    addresses: list[tuple[Path, str | None]] = [((*path, "issuer"), issuer.issuer)]
    if issuer.jwks is not None:
        addresses = [((*path, "jwks", "url"), issuer.jwks.url)]
    login = issuer.login
    if login is not None:
        addresses += [
            ((*path, "login", "authorization_endpoint"), login.authorization_endpoint),
            ((*path, "login", "token_endpoint"), login.token_endpoint),
            ((*path, "login", "redirect_base"), login.redirect_base),
        ]
        if login.token_endpoint is None or login.authorization_endpoint is None:
            addresses.append(((*path, "issuer"), issuer.issuer))
    for place, address in dict(addresses).items():
        if address is not None and address.startswith("http:") and not is_loopback(urlsplit(address).hostname or ""):
            message = "plain http can be changed on its way, and with it who may come in"
            yield Finding(place, message, "use https; for keys, jwks: {file: PATH} works too")
    yield from _twice((*path, "algorithms"), None, issuer.algorithms)
    if login is None:
        return
    if "openid" not in login.scopes:
        yield Finding((*path, "login", "scopes"), "openid is missing, so that there would be no ID token", "add openid")
    if urlsplit(login.redirect_base).path:
        message = "has a path; the listener is served at the root of its address"
        yield Finding((*path, "login", "redirect_base"), message, "write only scheme, host and port")
    for index, scope in enumerate(login.scopes):
        if not scope or " " in scope:
            yield Finding((*path, "login", "scopes", index), "is not one scope", "write each as an entry of its own")


def _certificates(settings: Settings) -> Iterator[Finding]:
    identity = settings.identity
    if identity.client_ca is not None and settings.server.tls is None:
        message = "clients show certificates only over TLS"
        yield Finding(("identity", "client_ca"), message, "set server.tls, or remove client_ca")
    path: Path = ("identity", "client_certificates")
    if identity.client_certificates and identity.client_ca is None:
        yield Finding(path, "clients are asked for no certificate", "set identity.client_ca")
    yield from _twice(path, "name", [each.name for each in identity.client_certificates])
    for index, subject in enumerate(identity.client_certificates):
        yield from _limited(settings, (*path, index), subject)


def _limited(settings: Settings, path: Path, limited: Limited) -> Iterator[Finding]:
    names = {name: route.model for route in settings.routes for name in (route.model, *route.aliases)}
    for index, wanted in enumerate(limited.routes or ()):
        if wanted not in names:
            yield Finding((*path, "routes", index), f"there is no route {wanted!r}", _cure(wanted, list(names)))
    targets = [str(target) for route in settings.routes for target in route.own_targets]
    for index, wanted in enumerate(limited.models or ()):
        if wanted not in targets:
            yield Finding((*path, "models", index), f"no route leads to {wanted!r}", _cure(wanted, targets))
    if limited.zones is not None and limited.models:
        zones = {provider.name: provider.zone for provider in settings.providers}
        reachable = {
            "on_box" if isinstance(target, DeploymentTarget) else zones.get(target.provider)
            for route in settings.routes
            for target in route.own_targets
            if str(target) in limited.models
        }
        if reachable and not reachable & set(limited.zones):
            message = "none of the models is in these zones, so that nothing could answer"
            yield Finding((*path, "zones"), message, "widen zones or models")
    for name in ("routes", "models", "zones", "addresses"):
        if getattr(limited, name) == ():
            yield Finding(
                (*path, name), "is empty, so that nothing would be allowed", "add an entry, or remove the line"
            )


def _cure(wanted: str, known: Sequence[str]) -> str:
    close = suggest(wanted, known)
    return f"did you mean {close}?" if close else f"known are: {', '.join(sorted(set(known))) or 'none'}"


def _twice(path: Path, key: str | None, values: Sequence[str]) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value in seen:
            place: Path = (*path, index) if key is None else (*path, index, key)
            yield Finding(place, f"{value!r} stands here twice", "give each its own" if key else "remove one")
        seen.add(value)
