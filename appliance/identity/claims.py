"""What a verified token makes of somebody: name, role, team and organisation, by the settings' mapping. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from appliance.errors import PermissionDenied, Unauthenticated
from appliance.identity.jwt import MAX_SUBJECT, BadToken, Claims
from appliance.identity.permissions import Role
from appliance.identity.principal import Principal

BY_POWER: tuple[Role, ...] = ("owner", "admin", "operator", "auditor", "member")
MAX_VALUES = 1000
MAX_NAME = 128
_ODD = re.compile(r"[^\w.@+ ,'()-]")


class Rules(msgspec.Struct, frozen=True):
    """Which claims count, and what their values mean. Names of claims: exact, else a path with dots."""

    user: str = "sub"
    name: str = "preferred_username"
    role: str | None = None
    team: str | None = None
    organization: str | None = None
    roles: Mapping[str, Role] = {}
    teams: Mapping[str, str] = {}
    default_role: Role | None = None
    fixed_organization: str | None = None


class Person(msgspec.Struct, frozen=True):
    """Somebody whom an issuer vouches for. Teams and organization: names, as the directory knows them. teams: all that
    are said; team: the one of them that the person works for. organization_claimed: it is the token that names the
    organization, not the settings."""

    issuer: str
    subject: str
    name: str
    role: Role
    team: str | None = None
    organization: str | None = None
    teams: frozenset[str] = frozenset()
    organization_claimed: bool = False


class Forgotten(Unauthenticated):
    """Who was signed in has been erased. Whoever shows the same credential is somebody whom nobody knows yet."""


class People(Protocol):
    """The directory, as far as those who sign in need it."""

    async def signed_in(
        self,
        issuer: str,
        subject: str,
        name: str,
        role: Role,
        team: str | None = None,
        organization: str | None = None,
        *,
        teams: frozenset[str] = frozenset(),
        issued: float | None = None,
        organization_claimed: bool = False,
    ) -> Principal:
        """The person as a principal, made known at the first time. Without news this touches no database.
        issued: when the issuer said so, in unix seconds; None for what is never old. organization_claimed: the issuer
        chose the organization, which must not be the one that runs the box.

        Raises PermissionDenied for a team or organisation that is not there, Unauthenticated for somebody disabled.
        """
        ...

    def standing(self, principal: Principal) -> Principal:
        """A principal as things are now. Raises Unauthenticated when it has ended, Forgotten when its person was
        erased. Takes microseconds."""
        ...


def person_of(claims: Claims, rules: Rules) -> Person:
    """Whom the token is about. Raises BadToken where it does not say who, PermissionDenied for whom has no role or no
    organisation here."""
    subject = who(claims, rules)
    name = _text(find(claims.all, rules.name)) or subject
    teams = _teams(claims, rules)
    return Person(
        issuer=claims.issuer,
        subject=subject,
        name=shown_name(name) or shown_name(subject) or "unnamed",
        role=_role(claims, rules),
        team=teams[0] if teams else None,
        organization=_organization(claims, rules),
        teams=frozenset(teams),
        organization_claimed=rules.fixed_organization is None and rules.organization is not None,
    )


def find(claims: Mapping[str, Any], name: str) -> Any:
    """The value of a claim: by its exact name, else by the path that its dots make; None if there is none."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def shown_name(text: str) -> str:
    """A name as the directory takes it: composed, printable, without slashes, at most 128 characters."""
    composed = unicodedata.normalize("NFC", text[: 4 * MAX_NAME])
    return unicodedata.normalize("NFC", _ODD.sub("_", composed)[:MAX_NAME].strip())


def issued_at(claims: Claims) -> float:
    """When the token was made, in unix seconds; one that does not say is older than all that do."""
    issued = claims.all.get("iat")
    return float(issued) if isinstance(issued, (int, float)) else 0.0


def who(claims: Claims, rules: Rules) -> str:
    """What tells the person apart from the issuer's others. Raises BadToken."""
    if rules.user == "sub":
        return claims.subject
    value = _text(find(claims.all, rules.user))
    if value is None or len(value) > MAX_SUBJECT or not value.isprintable():
        raise BadToken("user", f"The token does not say whose it is: it has no claim {rules.user}.")
    if rules.user == "email" and claims.all.get("email_verified") is not True:
        # Whoever may write any address into an account would be anybody.
        raise BadToken("email", "The e-mail address in the token is not verified.")
    return value


def _role(claims: Claims, rules: Rules) -> Role:
    values = _values(claims, rules.role)
    given = {rules.roles[value] for value in values if value in rules.roles}
    for role in BY_POWER:
        if role in given:
            return role
    if rules.default_role is None:
        raise PermissionDenied("This account has no role on this gateway; ask an admin to give it one.")
    return rules.default_role


def _teams(claims: Claims, rules: Rules) -> list[str]:
    """All that the token names, the one that counts first."""
    values = _values(claims, rules.team)
    if not rules.teams:
        return values
    return [team for value, team in rules.teams.items() if value in values]


def _organization(claims: Claims, rules: Rules) -> str | None:
    if rules.fixed_organization is not None or rules.organization is None:
        return rules.fixed_organization
    values = _values(claims, rules.organization)
    if len(values) != 1:
        # Never the organisation that runs the box for want of another.
        raise PermissionDenied(f"The token must name one organization in its claim {rules.organization}.")
    return values[0]


def _values(claims: Claims, name: str | None) -> list[str]:
    """The texts of a claim that may be one or several."""
    value = None if name is None else find(claims.all, name)
    several = value if isinstance(value, list) else [value]
    return [each for each in several[:MAX_VALUES] if isinstance(each, str) and 0 < len(each) <= MAX_NAME]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
