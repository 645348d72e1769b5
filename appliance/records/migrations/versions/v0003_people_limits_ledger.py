"""People, limits, the ledger's chain, and content."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ROLES = "role IN ('owner', 'admin', 'operator', 'auditor', 'member')"


def upgrade() -> None:
    _people()
    _keys()
    _limits()
    _exchanges()
    _ledger()
    _content()


def _people() -> None:
    organizations = op.create_table(
        "organizations",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("disabled_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_organizations"),
        sa.UniqueConstraint("name", name="uq_organizations_name"),
    )
    op.bulk_insert(organizations, [{"id": "org_default", "name": "default", "created_at": time.time()}])
    op.create_table(
        "teams",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("organization_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("disabled_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_teams"),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"]),
    )
    op.create_index("uq_teams_name", "teams", ["organization_id", "name"], unique=True)
    op.create_table(
        "users",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("organization_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("disabled_at", sa.Float(), nullable=True),
        sa.Column("vouched_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"]),
    )
    op.create_index("uq_users_name", "users", ["organization_id", "name"], unique=True)
    op.create_index("uq_users_subject", "users", ["issuer", "subject"], unique=True)
    op.create_table(
        "team_members",
        sa.Column("team_id", sa.String(32), nullable=False),
        sa.Column("user_id", sa.String(32), nullable=False),
        sa.Column("claimed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("team_id", "user_id", name="pk_team_members"),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"]),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"]),
    )
    op.create_table(
        "service_accounts",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("organization_id", sa.String(32), nullable=False),
        sa.Column("team_id", sa.String(32), nullable=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("disabled_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_service_accounts"),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"]),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"]),
    )
    op.create_index("uq_service_accounts_name", "service_accounts", ["organization_id", "name"], unique=True)


def _keys() -> None:
    op.drop_index("uq_api_keys_active_name", "api_keys")
    with op.batch_alter_table("api_keys") as keys:
        keys.drop_constraint(op.f("ck_api_keys_role"), type_="check")
        keys.add_column(sa.Column("organization_id", sa.String(32), nullable=False, server_default="org_default"))
        keys.add_column(sa.Column("team_id", sa.String(32), nullable=True))
        keys.add_column(sa.Column("user_id", sa.String(32), nullable=True))
        keys.add_column(sa.Column("service_account_id", sa.String(32), nullable=True))
        keys.add_column(sa.Column("expires_at", sa.Float(), nullable=True))
        keys.add_column(sa.Column("restrictions", sa.Text(), nullable=False, server_default="{}"))
        keys.add_column(sa.Column("created_by", sa.String(64), nullable=True))
        keys.add_column(sa.Column("replaces", sa.String(32), nullable=True))
    # What used to be an admin could do everything, and goes on to.
    op.execute("UPDATE api_keys SET role = 'owner' WHERE role = 'admin'")
    op.execute("UPDATE api_keys SET role = 'member' WHERE role = 'user'")
    with op.batch_alter_table("api_keys") as keys:
        keys.create_check_constraint(op.f("ck_api_keys_role"), ROLES)
    op.create_index(
        "uq_api_keys_active_name",
        "api_keys",
        ["organization_id", "name"],
        unique=True,
        sqlite_where=sa.text("revoked_at IS NULL"),
        postgresql_where=sa.text("revoked_at IS NULL"),
    )


def _limits() -> None:
    op.create_table(
        "limits",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("organization_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_limits"),
        sa.UniqueConstraint("name", name="uq_limits_name"),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"]),
    )
    op.create_table(
        "limit_counters",
        sa.Column("counter", sa.String(255), nullable=False),
        sa.Column("window_start", sa.Float(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.Column("as_of", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("counter", name="pk_limit_counters"),
    )


def _exchanges() -> None:
    for column in (
        sa.Column("organization_id", sa.String(32), nullable=True),
        sa.Column("team_id", sa.String(32), nullable=True),
        sa.Column("user_id", sa.String(128), nullable=True),
        sa.Column("service_account_id", sa.String(32), nullable=True),
        sa.Column("tags", sa.Text(), nullable=False, server_default="[]"),
        sa.Column("priority", sa.String(16), nullable=True),
        sa.Column("reasoning_tokens", SERIAL, nullable=False, server_default="0"),
        sa.Column("cost_nanousd", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("charges", sa.Text(), nullable=False, server_default="[]"),
        sa.Column("content_digest", sa.String(64), nullable=True),
        sa.Column("hash", sa.LargeBinary(32), nullable=True),
    ):
        op.add_column("exchanges", column)


def _ledger() -> None:
    op.create_table(
        "events",
        sa.Column("seq", SERIAL, autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_events"),
    )
    op.create_index("ix_events_kind", "events", ["kind"])
    op.create_table(
        "checkpoints",
        sa.Column("seq", SERIAL, autoincrement=False, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_checkpoints"),
    )
    op.create_table(
        "anchors",
        sa.Column("seq", SERIAL, autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_anchors"),
    )


def _content() -> None:
    op.create_table(
        "subject_keys",
        sa.Column("subject", sa.String(128), nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("subject", name="pk_subject_keys"),
    )
    op.create_table(
        "contents",
        sa.Column("exchange_id", sa.String(64), nullable=False),
        sa.Column("part", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(128), nullable=False),
        sa.Column("policy", sa.String(16), nullable=False),
        sa.Column("nonce", sa.LargeBinary(12), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("exchange_id", "part", name="pk_contents"),
    )
    op.create_index("ix_contents_subject", "contents", ["subject"])
    op.create_index("ix_contents_created_at", "contents", ["created_at"])
