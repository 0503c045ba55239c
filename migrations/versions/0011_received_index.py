"""An index by which a tenant's versions of the files that it announces are found without reading all.

Revision: 0011.
"""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_adapter_versions_received_sha256", "adapter_versions", ["received_sha256"])


def downgrade() -> None:
    op.drop_index("ix_adapter_versions_received_sha256", "adapter_versions")
