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


def may_grant(grantor: Role, role: Role) -> bool:
    """Whether somebody with one role may give another: never more than the grantor has."""
    return ROLES[role] <= ROLES[grantor]
