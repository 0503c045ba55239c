"""Where an adapter begins to act, and whether it can be combined with others.

Revision: 0009.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    json = sa.JSON().with_variant(JSONB(), "postgresql")
    with op.batch_alter_table("adapter_versions") as versions:
        versions.add_column(sa.Column("invocation_tokens", json, nullable=True))
        versions.add_column(sa.Column("is_additive", sa.Boolean(), nullable=False, server_default=sa.true()))
    with op.batch_alter_table("adapter_versions") as versions:
        versions.alter_column("is_additive", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("adapter_versions") as versions:
        versions.drop_column("is_additive")
        versions.drop_column("invocation_tokens")
