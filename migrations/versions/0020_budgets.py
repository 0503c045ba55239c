"""Budgets of tenants and keys, and what they spent day by day.

Revision: 0020.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

SUBJECT = sa.String(48).with_variant(sa.String(48, collation="C"), "postgresql")

FILL = """
INSERT INTO spending_days (subject, day, currency, tokens, cost_micros)
SELECT '{kind}/' || {kind}_id, hour / 24, currency, SUM(prompt_tokens + completion_tokens), SUM(cost_micros)
FROM usage_hours GROUP BY {kind}_id, hour / 24, currency
"""


def upgrade() -> None:
    for table in ("tenants", "api_keys"):
        op.add_column(table, sa.Column("budget", sa.JSON().with_variant(postgresql.JSONB(), "postgresql")))
    op.create_table(
        "spending_days",
        sa.Column("subject", SUBJECT, nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_micros", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "day", "currency", name="pk_spending_days"),
    )
    for kind in ("tenant", "key"):
        op.execute(FILL.format(kind=kind))


def downgrade() -> None:
    op.drop_table("spending_days")
    for table in ("tenants", "api_keys"):
        op.drop_column(table, "budget")
