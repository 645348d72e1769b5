"""Every table, declared once. The migrations lead to exactly this; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

SCHEMA = "0005"
"""The newest migration's name. Kept here so that a start that has nothing to migrate need not load Alembic."""

DEFAULT_ORGANIZATION = "org_default"

SERIAL = BigInteger().with_variant(Integer, "sqlite")
"""A sequence number; SQLite counts by itself only in a column that is declared INTEGER."""

COUNT = SERIAL
"""A number that somebody else has counted, so that it may be anything up to 2^53; SQLite's INTEGER has 64 bits."""

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
    Column("value", SERIAL, nullable=False),
)
"""Small numbers: `identity_epoch` rises with every change of a key, `probe` shows that writing works."""

organizations = Table(
    "organizations",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("disabled_at", Float),
)
"""`org_default` is always there: it runs the box."""

teams = Table(
    "teams",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("organization_id", String(32), ForeignKey("organizations.id"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("disabled_at", Float),
    Index("uq_teams_name", "organization_id", "name", unique=True),
)

users = Table(
    "users",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("organization_id", String(32), ForeignKey("organizations.id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("role", String(16), nullable=False),
    Column("issuer", Text),
    Column("subject", Text),
    Column("created_at", Float, nullable=False),
    Column("disabled_at", Float),
    Column("vouched_at", Float),
    Index("uq_users_name", "organization_id", "name", unique=True),
    Index("uq_users_subject", "issuer", "subject", unique=True),
)
"""`issuer` and `subject` are those of the identity provider that the person signs in with; NULL for others.
`vouched_at` (unix seconds) is when it made the token that last changed something of them: older ones change nothing."""

team_members = Table(
    "team_members",
    metadata,
    Column("team_id", String(32), ForeignKey("teams.id"), primary_key=True),
    Column("user_id", String(32), ForeignKey("users.id"), primary_key=True),
    Column("claimed", Boolean, nullable=False),
)
"""`claimed`: a token said so, and a newer one that does not ends it. Else somebody gave it by hand."""

service_accounts = Table(
    "service_accounts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("organization_id", String(32), ForeignKey("organizations.id"), nullable=False),
    Column("team_id", String(32), ForeignKey("teams.id")),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("disabled_at", Float),
    Index("uq_service_accounts_name", "organization_id", "name", unique=True),
)

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
    Column("organization_id", String(32), nullable=False, server_default=DEFAULT_ORGANIZATION),
    Column("team_id", String(32)),
    Column("user_id", String(32)),
    Column("service_account_id", String(32)),
    Column("expires_at", Float),
    Column("restrictions", Text, nullable=False, server_default="{}"),
    Column("created_by", String(64)),
    Column("replaces", String(32)),
    CheckConstraint("role IN ('owner', 'admin', 'operator', 'auditor', 'member')", name="role"),
    Index(
        "uq_api_keys_active_name",
        "organization_id",
        "name",
        unique=True,
        sqlite_where=text("revoked_at IS NULL"),
        postgresql_where=text("revoked_at IS NULL"),
    ),
)
"""Access keys. `digest` is the keyed hash of the whole key; a revoked key keeps its row, not its name. At most one of
`user_id` (a personal access token) and `service_account_id` is set. `restrictions` is JSON (`Restrictions`).
`replaces` is the key that this one was made to follow; that one goes on until it expires."""

limits = Table(
    "limits",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("organization_id", String(32), ForeignKey("organizations.id"), nullable=False),
    Column("name", String(64), nullable=False, unique=True),
    Column("rule", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)
"""Limits that operators set beside those of the settings file. `rule` is JSON in the form of the file's entries."""

limit_counters = Table(
    "limit_counters",
    metadata,
    Column("counter", String(255), primary_key=True),
    Column("window_start", Float, nullable=False),
    Column("state", Text, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("as_of", BigInteger, nullable=False),
)
"""What has been used up. `state` (JSON) is what was settled by the exchanges up to the sequence number `as_of`; later
ones are counted again from their rows at start. `held` is what requests under way may have used at most; at start it is
counted as used."""

exchanges = Table(
    "exchanges",
    metadata,
    Column("seq", SERIAL, primary_key=True, autoincrement=True),
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
    Column("prompt_tokens", COUNT, nullable=False),
    Column("cached_tokens", COUNT, nullable=False),
    Column("completion_tokens", COUNT, nullable=False),
    Column("usage_source", String(16), nullable=False),
    Column("queue_s", Float),
    Column("ttft_s", Float),
    Column("duration_s", Float, nullable=False),
    Column("client", String(64), nullable=False),
    Column("organization_id", String(32)),
    Column("team_id", String(32)),
    Column("user_id", String(128)),
    Column("service_account_id", String(32)),
    Column("tags", Text, nullable=False, server_default="[]"),
    Column("priority", String(16)),
    Column("reasoning_tokens", COUNT, nullable=False, server_default="0"),
    Column("cost_nanousd", BigInteger, nullable=False, server_default="0"),
    Column("charges", Text, nullable=False, server_default="[]"),
    Column("content_digest", String(64)),
    Column("hash", LargeBinary(32)),
    # Without AUTOINCREMENT a database whose newest rows were erased would hand their numbers out again.
    sqlite_autoincrement=True,
)
"""One row an exchange, and a record of the ledger: `hash` is SHA-256 over the hash of the record before and the
canonical JSON of all columns but `hash` (chain.py). NULL: written before there was a ledger. `finish_reasons`,
`attempts`, `tags` and `charges` are JSON. `content_digest` is keyed with the subject's key, so that it says nothing
once that is gone."""

events = Table(
    "events",
    metadata,
    Column("seq", SERIAL, primary_key=True, autoincrement=False),
    Column("kind", String(64), nullable=False, index=True),
    Column("at_us", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
)
"""Everything else on the ledger: refusals without an exchange, administrative changes, guard events. Shares its
sequence with `exchanges`. `body` is the canonical JSON that was hashed; `at_us` is unix microseconds."""

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("seq", SERIAL, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("note", Text, nullable=False),
)
"""Signed statements of the chain's state: the record `seq` has the hash that `note` (a signed note) says."""

anchors = Table(
    "anchors",
    metadata,
    Column("seq", SERIAL, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("at", Float, nullable=False),
    Column("reason", Text, nullable=False),
)
"""Where the chain begins: the hash of the last record that retention has removed (or 32 zero bytes at 0)."""

subject_keys = Table(
    "subject_keys",
    metadata,
    Column("subject", String(128), primary_key=True),
    Column("wrapped_key", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),
)
"""One key a person, wrapped by the box's own. Erasing a person is deleting this row."""

contents = Table(
    "contents",
    metadata,
    Column("exchange_id", String(64), primary_key=True),
    Column("part", String(16), primary_key=True),
    Column("subject", String(128), nullable=False, index=True),
    Column("policy", String(16), nullable=False),
    Column("nonce", LargeBinary(12), nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False, index=True),
)
"""What was asked and answered, compressed and encrypted with the subject's key. `part` is request or answer."""

responses = Table(
    "responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("subject", String(128), nullable=False, index=True),
    Column("organization_id", String(32), nullable=False),
    Column("team_id", String(32)),
    Column("route", Text, nullable=False),
    Column("previous_id", String(64)),
    Column("status", String(16), nullable=False),
    Column("background", Boolean, nullable=False),
    Column("size", COUNT, nullable=False),
    Column("created_at", Float, nullable=False, index=True),
    Column("input_nonce", LargeBinary(12), nullable=False),
    Column("input", LargeBinary, nullable=False),
    Column("answer_nonce", LargeBinary(12), nullable=False),
    Column("answer", LargeBinary, nullable=False),
    Column("reach", String(32)),
)
"""Answers of /v1/responses that their owner may read again and go on with. `input` (its own items) and `answer` (the
response) are JSON, sealed as contents are; `size` is their bytes before that. `status` counts, not the answer's own.
`previous_id` is the response that this one goes on from; that one may be gone. `reach`: how far its data may
go, see appliance.responses.reach; NULL where nobody noted it."""
