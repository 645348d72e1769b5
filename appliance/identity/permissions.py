"""What each role may do. Deny by default: what is not in this table is not allowed."""

from __future__ import annotations

from typing import Literal, get_args

Role = Literal["owner", "admin", "operator", "auditor", "member"]
"""owner: everything. admin: people, keys, limits and settings. operator: runs the box. auditor: reads all that is on
record. member: asks models."""

Permission = Literal[
    "models.use",
    "status.read",
    "metrics.read",
    "settings.reload",
    "people.read",
    "people.write",
    "keys.read",
    "keys.write",
    "keys.own",
    "limits.read",
    "limits.write",
    "requests.read",
    "usage.read",
    "ledger.read",
    "ledger.export",
    "content.read",
    "content.erase",
    "owners.write",
]
"""`keys.own`: make and end personal access tokens of one's own. `owners.write`: give and take the role of owner."""

PERMISSIONS: frozenset[Permission] = frozenset(get_args(Permission))

_MEMBER: frozenset[Permission] = frozenset({"models.use", "keys.own"})
_AUDITOR: frozenset[Permission] = frozenset(
    {
        "keys.own",
        "status.read",
        "people.read",
        "keys.read",
        "limits.read",
        "requests.read",
        "usage.read",
        "ledger.read",
        "ledger.export",
        "content.read",
    }
)
_OPERATOR: frozenset[Permission] = _MEMBER | {
    "status.read",
    "metrics.read",
    "settings.reload",
    "people.read",
    "keys.read",
    "limits.read",
    "requests.read",
    "usage.read",
}

ROLES: dict[Role, frozenset[Permission]] = {
    "owner": PERMISSIONS,
    "admin": PERMISSIONS - {"owners.write", "content.read"},
    "operator": _OPERATOR,
    "auditor": _AUDITOR,
    "member": _MEMBER,
}


BOX_WIDE: frozenset[Permission] = frozenset({"status.read", "metrics.read", "settings.reload", "ledger.read"})
"""What concerns the whole box, or shows what belongs to all: only for the organisation that runs it."""


def may_grant(grantor: Role, role: Role) -> bool:
    """Whether somebody with one role may give another: never more than the grantor has."""
    return ROLES[role] <= ROLES[grantor]


def above(role: Role) -> frozenset[Role]:
    """Roles that may do all that this one may, and more."""
    return frozenset(each for each in ROLES if ROLES[each] > ROLES[role])


def within(role: Role, holder: Role) -> Role | None:
    """The greatest role that exceeds neither `role` nor what its holder has now; None if they share none."""
    if may_grant(holder, role):
        return role
    shared = ROLES[role] & ROLES[holder]
    return max((each for each in ROLES if ROLES[each] <= shared), key=lambda each: len(ROLES[each]), default=None)
