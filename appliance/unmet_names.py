"""Names in the settings that nobody has: the settings are good, since somebody may be called so later, but what they
say of such a name is never done until then. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from appliance.identity.principal import DEFAULT_ORGANIZATION
from appliance.identity.snapshot import KeyRecord, Organization, ServiceAccount, Snapshot, Team, User
from appliance.limits.unmet import FIELDS, declared_credentials, nobody
from appliance.settings import Settings
from appliance.settings.checks_limiting import limit_name
from appliance.settings.document import Finding, Path
from appliance.settings.people import Issuer, Limited

_KINDS: dict[str, Any] = {
    "organization": Organization,
    "team": Team,
    "user": User,
    "service_account": ServiceAccount,
    "key": KeyRecord,
}


def unmet_names(settings: Settings, snapshot: Snapshot) -> list[Finding]:
    """One for each name of `limits`, `records.content_rules` and `identity` that is neither id nor name of anybody.

    Model names, targets and providers are not among them: the settings' own checks refuse those.
    """
    known = _Known(settings, snapshot)
    return [*_limits(settings, known), *_content_rules(settings, known), *_identity(settings, snapshot)]


class _Known:
    """The ids and names that there are, looked through once for each field that the settings name somebody in."""

    def __init__(self, settings: Settings, snapshot: Snapshot) -> None:
        self._settings = settings
        self._snapshot = snapshot
        self._found: dict[str, frozenset[str]] = {}

    def has(self, field: str, name: str) -> bool:
        if field not in self._found:
            self._found[field] = frozenset(self._look(field))
        return name in self._found[field]

    def _look(self, field: str) -> Iterator[str]:
        if field == "key":
            yield from declared_credentials(self._settings)
        for each in self._snapshot.all(_KINDS[field]).values():
            yield each.id
            yield each.name


def _limits(settings: Settings, known: _Known) -> Iterator[Finding]:
    for index, limit in enumerate(settings.limits):
        for field in FIELDS:
            for name in getattr(limit.match, field) or ():
                if not known.has(field, name):
                    yield _finding(("limits", index, "match", field), name, f"the limit {limit_name(limit)}")


def _content_rules(settings: Settings, known: _Known) -> Iterator[Finding]:
    for index, rule in enumerate(settings.records.content_rules):
        for field, name in (("team", rule.team), ("organization", rule.organization)):
            if name is not None and not known.has(field, name):
                yield _finding(("records", "content_rules", index, field), name, f"the rule (content: {rule.content})")


def _finding(path: Path, name: str, what: str) -> Finding:
    field = str(path[-1])
    return Finding(
        path,
        f"{nobody(field, name)}; {what} never applies to it until there is one",
        f"correct the name, or make the {field.replace('_', ' ')}",
    )


# --- who may ask ------------------------------------------------------------------------------------


def _identity(settings: Settings, snapshot: Snapshot) -> Iterator[Finding]:
    identity = settings.identity
    for index, key in enumerate(identity.keys):
        yield from _limited(("identity", "keys", index), key, f"the key {key.name}", snapshot)
    for index, issuer in enumerate(identity.oidc):
        yield from _issuer(("identity", "oidc", index), issuer, snapshot)
    for index, entry in enumerate(identity.client_certificates):
        path: Path = ("identity", "client_certificates", index)
        yield from _limited(path, entry, f"the certificate {entry.name}", snapshot)


def _limited(path: Path, limited: Limited, what: str, snapshot: Snapshot) -> Iterator[Finding]:
    lets = f"{what} lets nobody in until there is one"
    organization = snapshot.organization(limited.organization or DEFAULT_ORGANIZATION)
    if organization is None:
        yield _closed((*path, "organization"), "organization", str(limited.organization), lets)
    elif limited.team is not None and snapshot.team(organization.id, limited.team) is None:
        yield _closed((*path, "team"), "team", limited.team, lets, organization)


def _issuer(path: Path, issuer: Issuer, snapshot: Snapshot) -> Iterator[Finding]:
    """Teams of an organization that only tokens name may be any organization's."""
    organization = snapshot.organization(issuer.organization or DEFAULT_ORGANIZATION)
    if organization is None:
        lets = f"nobody from {issuer.name} is let in until there is one"
        yield _closed((*path, "organization"), "organization", str(issuer.organization), lets)
        return
    places: Iterable[Organization] = [organization]
    if issuer.organization is None and issuer.claims.organization is not None:
        places = snapshot.all(Organization).values()
    for value, team in issuer.teams.items():
        if not any(snapshot.team(place.id, team) for place in places):
            lets = f"nobody with {value!r} is let in until there is one"
            yield _closed((*path, "teams", value), "team", team, lets)


def _closed(path: Path, field: str, name: str, lets: str, place: Organization | None = None) -> Finding:
    of = "" if place is None or place.id == DEFAULT_ORGANIZATION else f" in the organization {place.name}"
    return Finding(path, f"{nobody(field, name)}{of}; {lets}", f"correct the name, or make the {field}")
