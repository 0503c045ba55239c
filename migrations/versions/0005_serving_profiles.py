"""How a version wants to be asked: its serving profile.

Revision: 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("adapter_versions") as versions:
        versions.add_column(sa.Column("profile", sa.JSON().with_variant(JSONB(), "postgresql")))
        versions.add_column(sa.Column("profile_digest", sa.String(64)))
        versions.add_column(sa.Column("profile_revision", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("adapter_versions") as versions:
        versions.alter_column("profile_revision", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("adapter_versions") as versions:
        for column in ("profile_revision", "profile_digest", "profile"):
            versions.drop_column(column)
