"""Who may give what to whom, as pure functions: a grant never exceeds the one who grants it."""

from __future__ import annotations

from appliance.errors import PermissionDenied
from appliance.identity.permissions import ROLES, Role, may_grant
from appliance.identity.principal import UNRESTRICTED, Principal, Restrictions
from appliance.identity.restrictions import exceeding, inherited

SIGNED_IN = "session"
"""The `key_id` of a person at a browser. Such a credential ends soon by its nature, not to keep rights short."""


def inherit(
    grantor: Principal, restrictions: Restrictions, expires_at: float | None
) -> tuple[Restrictions, float | None]:
    """A wish with the grantor's own limits where it names none."""
    own = None if grantor.key_id == SIGNED_IN else grantor.expires_at
    return inherited(restrictions, grantor.restrictions), own if expires_at is None else expires_at


def check_grant(
    grantor: Principal,
    role: Role,
    *,
    organization: str,
    team: str | None = None,
    user: str | None = None,
    service_account: str | None = None,
    restrictions: Restrictions = UNRESTRICTED,
    expires_at: float | None = None,
) -> None:
    """Whether a key with these rights may be made. Ids throughout. Raises PermissionDenied that names the field."""
    if not grantor.may("keys.write"):
        _check_own(grantor, team=team, user=user, service_account=service_account)
    check_organization(grantor, organization)
    check_role(grantor, role)
    if (field := exceeding(restrictions, grantor.restrictions)) is not None:
        raise _denied(
            f"restrictions.{field}",
            "your own credential allows less; name only what it allows, or leave the field out to take it over",
        )
    end = None if grantor.key_id == SIGNED_IN else grantor.expires_at
    if end is not None and (expires_at is None or expires_at > end):
        raise _denied("expires_at", "your own credential ends sooner; choose a time before its end")


def _check_own(grantor: Principal, *, team: str | None, user: str | None, service_account: str | None) -> None:
    """Personal access tokens of one's own, for the team that the credential works for."""
    if not grantor.may("keys.own"):
        raise PermissionDenied(f"Keys need the permission keys.own or keys.write; the role {grantor.role} has neither.")
    if grantor.user is None:
        raise _denied("user", "this credential belongs to no person; only people have personal access tokens")
    if user != grantor.user:
        raise _denied("user", "without the permission keys.write only tokens for yourself can be made and ended")
    if service_account is not None:
        raise _denied("service_account", "this needs the permission keys.write; leave it out")
    if grantor.team is not None and team != grantor.team:
        raise _denied("team", "your own credential works for one team; the new one must be for the same")


def check_organization(grantor: Principal, organization: str | None) -> None:
    """Only one's own, for those who do not oversee the box. `None`: all of them. Raises PermissionDenied."""
    if grantor.oversees is not None and organization != grantor.oversees:
        raise _denied("organization", f"you may only act in your own, {grantor.oversees}")


def check_role(grantor: Principal, role: Role, *, had: Role | None = None, of: str | None = None) -> None:
    """Whether `grantor` may give `role` to somebody (`of`: a user's id) who `had` another. Raises PermissionDenied."""
    if not may_grant(grantor.role, role):
        own = ", ".join(each for each in ROLES if may_grant(grantor.role, each))
        raise _denied("role", f"{grantor.role} may not give {role}; choose from {own}")
    if had is not None and of is not None and of == grantor.user and not may_grant(had, role):
        raise _denied("role", "nobody raises their own role; ask somebody else who may")
    if had == "owner":
        check_owner(grantor)


def check_owner(grantor: Principal) -> None:
    """What an owner has is changed by owners only. Raises PermissionDenied."""
    if not grantor.may("owners.write"):
        raise PermissionDenied("This belongs to an owner; only an owner may change or end it.")


def _denied(field: str, why: str) -> PermissionDenied:
    return PermissionDenied(f"{field}: {why}", param=field)
