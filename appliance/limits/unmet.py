"""Names in a limit's `match` that nobody has: such a limit is kept, and told, since it never applies until somebody
does."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Table, or_, select

from appliance.identity.principal import DEFAULT_ORGANIZATION
from appliance.records.tables import api_keys, organizations, service_accounts, teams, users
from appliance.records.transaction import Transaction
from appliance.settings import Settings
from appliance.settings.limiting import Limit

_TABLES: dict[str, Table] = {
    "organization": organizations,
    "team": teams,
    "user": users,
    "service_account": service_accounts,
    "key": api_keys,
}
FIELDS = tuple(_TABLES)
"""Keys of `match` that name somebody who is in the database."""


def declared_credentials(settings: Settings) -> frozenset[str]:
    """What `match.key` may call the credentials that the settings declare, and no database has."""
    identity = settings.identity
    found = {name for key in identity.keys for name in (key.name, f"fixed:{key.name}")}
    found |= {f"jwt:{issuer.name}" for issuer in identity.oidc}
    if identity.client_certificates:
        found |= {"mtls", *(entry.name for entry in identity.client_certificates)}
    return frozenset(found)


def nobody(field: str, name: str) -> str:
    """What is told of a name."""
    return f"there is no {field.replace('_', ' ')} with the id or name {name!r} yet"


def unmet(tx: Transaction, limit: Limit, organization: str, declared: Collection[str]) -> list[str]:
    """A remark for each name. organization: the id of whose limit it is, which reaches nobody else's people unless it
    is the one that runs the box. declared: see `declared_credentials`."""
    remarks = []
    for field, table in _TABLES.items():
        for name in getattr(limit.match, field) or ():
            if field == "key" and name in declared:
                continue
            query = select(table.c.id).where(or_(table.c.id == name, table.c.name == name))
            if field != "organization" and organization != DEFAULT_ORGANIZATION:
                query = query.where(table.c.organization_id == organization)
            if tx.connection.execute(query.limit(1)).first() is None:
                remarks.append(f"match.{field}: {nobody(field, name)}")
    return remarks
