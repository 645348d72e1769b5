"""Alembic's entry: runs the steps on the connection and inside the transaction that `migrate.py` hands in."""

from __future__ import annotations

from alembic import context

from appliance.records.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
