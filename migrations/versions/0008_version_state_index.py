"""An index by which the versions that are validating are found without reading all.

Revision: 0008.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_adapter_versions_state_created_at", "adapter_versions", ["state", "created_at"])


def downgrade() -> None:
    op.drop_index("ix_adapter_versions_state_created_at", "adapter_versions")
