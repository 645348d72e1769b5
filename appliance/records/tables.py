"""Every table, declared once. The migrations lead to exactly this; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

SCHEMA = "0002"
"""The newest migration's name. Kept here so that a start that has nothing to migrate need not load Alembic."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

counters = Table(
    "counters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Integer, nullable=False),
)
"""Small numbers: `identity_epoch` rises with every change of a key, `probe` shows that writing works."""

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("prefix", String(7), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("secret_id", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
    CheckConstraint("role IN ('admin', 'user')", name="role"),
    Index("uq_api_keys_active_name", "name", unique=True, sqlite_where=text("revoked_at IS NULL")),
)
"""Keys that operators make. `digest` is the keyed hash of the whole key; a revoked key keeps its row, not its name."""

exchanges = Table(
    "exchanges",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, index=True),
    Column("kind", String(64), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("key_id", String(64)),
    Column("key_name", String(64)),
    Column("route", Text),
    Column("target", Text),
    Column("stream", Boolean, nullable=False),
    Column("status", Integer, nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("error_code", String(64)),
    Column("finish_reasons", Text, nullable=False),
    Column("attempts", Text, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("usage_source", String(16), nullable=False),
    Column("queue_s", Float),
    Column("ttft_s", Float),
    Column("duration_s", Float, nullable=False),
    Column("client", String(64), nullable=False),
    # Without AUTOINCREMENT a database whose newest rows were erased would hand their numbers out again.
    sqlite_autoincrement=True,
)
"""One row an exchange. `finish_reasons` and `attempts` are JSON."""
