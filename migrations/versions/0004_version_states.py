"""Why a version is in the state that it is in.

Revision: 0004.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("adapter_versions") as versions:
        versions.add_column(sa.Column("state_reason", sa.Text(), nullable=False, server_default=""))
    with op.batch_alter_table("adapter_versions") as versions:
        versions.alter_column("state_reason", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("adapter_versions") as versions:
        versions.drop_column("state_reason")
