"""Limits of tenants and keys, and what was used of them.

Revision: 0015.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
SUBJECT = sa.String(48).with_variant(sa.String(48, collation="C"), "postgresql")


def upgrade() -> None:
    for owners in ("tenants", "api_keys"):
        op.add_column(owners, sa.Column("limits", JSON))
    op.create_table(
        "rate_use",
        sa.Column("subject", SUBJECT, nullable=False),
        sa.Column("requests", sa.Double(), nullable=False),
        sa.Column("tokens", sa.Double(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("subject", name="pk_rate_use"),
    )
    op.create_index("ix_rate_use_at", "rate_use", ["at"])


def downgrade() -> None:
    op.drop_table("rate_use")
    for owners in ("tenants", "api_keys"):
        op.drop_column(owners, "limits")
