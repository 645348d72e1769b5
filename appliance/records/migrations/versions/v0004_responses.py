"""Stored answers of /v1/responses."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "responses",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(128), nullable=False),
        sa.Column("organization_id", sa.String(32), nullable=False),
        sa.Column("team_id", sa.String(32), nullable=True),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("previous_id", sa.String(64), nullable=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("background", sa.Boolean(), nullable=False),
        sa.Column("size", SERIAL, nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("input_nonce", sa.LargeBinary(12), nullable=False),
        sa.Column("input", sa.LargeBinary(), nullable=False),
        sa.Column("answer_nonce", sa.LargeBinary(12), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_responses"),
    )
    op.create_index("ix_responses_subject", "responses", ["subject"])
    op.create_index("ix_responses_created_at", "responses", ["created_at"])
