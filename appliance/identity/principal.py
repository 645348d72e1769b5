"""Who is asking, as plain data."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from appliance.identity.permissions import BOX_WIDE, ROLES, Permission, Role
from appliance.settings.admission import PRIORITIES, Priority

__all__ = [
    "DEFAULT_ORGANIZATION",
    "PRIORITIES",
    "UNRESTRICTED",
    "Principal",
    "Priority",
    "Restrictions",
    "Role",
    "Zone",
]

DEFAULT_ORGANIZATION = "org_default"
"""The organisation that runs the box: always there; its overseers oversee everything."""

Zone = Literal["on_box", "on_prem", "cloud"]


class Restrictions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a credential is limited to; None = not limited."""

    routes: tuple[str, ...] | None = None
    """Model names that clients may ask for."""
    models: tuple[str, ...] | None = None
    """Targets that may answer: a deployment's name, or provider/model."""
    zones: tuple[Zone, ...] | None = None
    """Where those that answer may be."""
    addresses: tuple[str, ...] | None = None
    """Networks that the credential may be used from, as CIDR."""
    priority: Priority | None = None
    """The most urgent class that may be asked for."""


UNRESTRICTED = Restrictions()


class Principal(msgspec.Struct, frozen=True):
    """The owner of a credential, as far as the rest of the house needs to know. Ids, but for `key_name`."""

    key_id: str
    """The credential: a key's id, `fixed:NAME`, `jwt:ISSUER`, `mtls`, `session`."""
    key_name: str
    """What records call it: the name of a key or of a certificate's entry, else the `key_id`. Never a person's name: it
    could not be erased from them."""
    role: Role
    organization: str = DEFAULT_ORGANIZATION
    team: str | None = None
    """The one team that the credential works for."""
    user: str | None = None
    service_account: str | None = None
    restrictions: Restrictions = Restrictions()
    expires_at: float | None = None
    """Unix seconds from which on the credential is worth nothing."""

    @property
    def subject(self) -> str:
        """Whose data the exchange is about: the person, else the service account, else the credential."""
        return self.user or self.service_account or self.key_id

    @property
    def credential(self) -> str:
        """The credential itself: people with tokens of one issuer have the same `key_id`."""
        return self.key_id if self.user is None else f"{self.key_id}/{self.user}"

    @property
    def actor(self) -> dict[str, Any]:
        """Who did something, as events of the ledger name it."""
        who = {"key": self.key_id, "role": self.role, "organization": self.organization}
        return who if self.user is None else {**who, "user": self.user}

    def may(self, permission: Permission) -> bool:
        """Whether the role has it; what concerns the whole box is for those who oversee all of it."""
        return permission in ROLES[self.role] and (self.oversees is None or permission not in BOX_WIDE)

    @property
    def oversees(self) -> str | None:
        """The organisation whose things this principal may see and change; None = all of them."""
        return None if self.organization == DEFAULT_ORGANIZATION else self.organization
