"""How many tokens a version knows whose tokenizer is not the base's.

Revision: 0012.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("adapter_versions") as versions:
        versions.add_column(sa.Column("vocab_size", sa.Integer(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("adapter_versions") as versions:
        versions.drop_column("vocab_size")
