"""Imports of adapters from hubs and buckets, as jobs.

Revision: 0006.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ID = sa.String(32).with_variant(sa.String(32, collation="C"), "postgresql")
ROW_ID = sa.String(32)
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "import_jobs",
        sa.Column("id", ID, nullable=False),
        sa.Column("adapter_id", ROW_ID, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("due_at", MOMENT, nullable=False),
        sa.Column("lease_owner", ROW_ID),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("file", sa.String(64)),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("bytes_total", sa.BigInteger()),
        sa.Column("version", sa.Integer()),
        sa.Column("error", JSON),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("started_at", MOMENT),
        sa.Column("finished_at", MOMENT),
        sa.Column("created_by", sa.String(12)),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_import_jobs_adapter_id_adapters"),
        sa.PrimaryKeyConstraint("id", name="pk_import_jobs"),
    )
    op.create_index("ix_import_jobs_adapter_id", "import_jobs", ["adapter_id"])
    op.create_index("ix_import_jobs_state_due_at", "import_jobs", ["state", "due_at"])


def downgrade() -> None:
    op.drop_table("import_jobs")
