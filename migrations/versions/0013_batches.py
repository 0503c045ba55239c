"""Tenants' files, and batches of requests that are answered in files.

Revision: 0013.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

ROW_ID = sa.String(32)
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)


def name(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    create_files()
    create_batches()
    op.create_table(
        "batch_answers",
        sa.Column("batch_id", name(40), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("is_error", sa.Boolean(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name="fk_batch_answers_batch_id_batches"),
        sa.PrimaryKeyConstraint("batch_id", "line", name="pk_batch_answers"),
    )


def downgrade() -> None:
    for table in ("batch_answers", "batches", "files"):
        op.drop_table(table)


def create_files() -> None:
    op.create_table(
        "files",
        sa.Column("id", name(40), nullable=False),
        sa.Column("tenant_id", ROW_ID, nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("created_by", sa.String(12)),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_files_tenant_id_tenants"),
        sa.PrimaryKeyConstraint("id", name="pk_files"),
    )
    op.create_index("ix_files_tenant_id_created_at", "files", ["tenant_id", "created_at"])
    op.create_index("ix_files_expires_at", "files", ["expires_at"])


def create_batches() -> None:
    moments = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    op.create_table(
        "batches",
        sa.Column("id", name(40), nullable=False),
        sa.Column("due_at", MOMENT, nullable=False),
        sa.Column("lease_owner", ROW_ID),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("tenant_id", ROW_ID, nullable=False),
        sa.Column("api_key_id", name(12), nullable=False),
        sa.Column("base_model", name(127), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("input_file_id", name(40), nullable=False),
        sa.Column("output_file_id", name(40)),
        sa.Column("error_file_id", name(40)),
        sa.Column("output_seconds", sa.Integer(), nullable=False),
        sa.Column("labels", JSON),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("errors", JSON),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("completed", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        *[sa.Column(f"{moment}_at", MOMENT) for moment in moments],
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_batches_tenant_id_tenants"),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name="fk_batches_api_key_id_api_keys"),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
    )
    op.create_index("ix_batches_tenant_id_created_at", "batches", ["tenant_id", "created_at"])
    op.create_index("ix_batches_status_due_at", "batches", ["status", "due_at"])
    op.create_index("ix_batches_input_file_id", "batches", ["input_file_id"])
