"""Names in a limit's `match` that nobody has: such a limit is kept, and told, since it never applies until somebody
does."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Table, or_, select

from appliance.identity.principal import DEFAULT_ORGANIZATION
from appliance.records.tables import api_keys, organizations, service_accounts, teams, users
from appliance.records.transaction import Transaction
from appliance.settings.limiting import Limit

_TABLES: dict[str, Table] = {
    "organization": organizations,
    "team": teams,
    "user": users,
    "service_account": service_accounts,
    "key": api_keys,
}


def unmet(tx: Transaction, limit: Limit, organization: str, declared: Iterable[str]) -> list[str]:
    """A remark for each name. organization: the id of whose limit it is, which reaches nobody else's people unless it
    is the one that runs the box. declared: names of the keys that the settings declare."""
    known = {name for key in declared for name in (key, f"fixed:{key}")}
    remarks = []
    for field, table in _TABLES.items():
        for name in getattr(limit.match, field) or ():
            if field == "key" and name in known:
                continue
            query = select(table.c.id).where(or_(table.c.id == name, table.c.name == name))
            if field != "organization" and organization != DEFAULT_ORGANIZATION:
                query = query.where(table.c.organization_id == organization)
            if tx.connection.execute(query.limit(1)).first() is None:
                what = field.replace("_", " ")
                remarks.append(f"match.{field}: there is no {what} with the id or name {name!r} yet")
    return remarks
