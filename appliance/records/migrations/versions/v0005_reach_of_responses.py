"""How far the data of a stored response may go. NULL for those that are there already: nobody noted it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("responses", sa.Column("reach", sa.String(32), nullable=True))
