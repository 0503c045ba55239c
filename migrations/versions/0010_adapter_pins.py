"""Versions that are to stay on the device, and until when.

Revision: 0010.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "adapter_pins",
        sa.Column("version_id", sa.String(32), nullable=False),
        sa.Column("adapter_id", sa.String(32), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(12)),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_adapter_pins_adapter_id_adapters"),
        sa.ForeignKeyConstraint(
            ["version_id"], ["adapter_versions.id"], name="fk_adapter_pins_version_id_adapter_versions"
        ),
        sa.PrimaryKeyConstraint("version_id", name="pk_adapter_pins"),
    )
    op.create_index("ix_adapter_pins_adapter_id", "adapter_pins", ["adapter_id"])
    op.create_index("ix_adapter_pins_expires_at", "adapter_pins", ["expires_at"])


def downgrade() -> None:
    op.drop_table("adapter_pins")
