"""Uploads in pieces, what a version was received as, answers kept for repeated requests, and leases.

Revision: 0007.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ROW_ID = sa.String(32)
KEY_ID = sa.String(12).with_variant(sa.String(12, collation="C"), "postgresql")
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    with op.batch_alter_table("adapter_versions") as versions:
        versions.add_column(sa.Column("received_sha256", sa.String(64)))
    create_uploads()
    create_idempotency_keys()
    create_leases()


def downgrade() -> None:
    for table in ("leases", "idempotency_keys", "uploads"):
        op.drop_table(table)
    with op.batch_alter_table("adapter_versions") as versions:
        versions.drop_column("received_sha256")


def create_uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("adapter_id", ROW_ID, nullable=False),
        sa.Column("files", JSON, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("version_number", sa.Integer()),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("created_by", sa.String(12)),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_uploads_adapter_id_adapters"),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
    )
    op.create_index("ix_uploads_adapter_id", "uploads", ["adapter_id"])
    op.create_index("ix_uploads_expires_at", "uploads", ["expires_at"])


def create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("api_key_id", KEY_ID, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("body", sa.LargeBinary()),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name="fk_idempotency_keys_api_key_id_api_keys"),
        sa.PrimaryKeyConstraint("api_key_id", "name", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_expires_at", "idempotency_keys", ["expires_at"])


def create_leases() -> None:
    leases = op.create_table(
        "leases",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.bulk_insert(leases, [{"name": "janitor", "expires_at": datetime(2000, 1, 1, tzinfo=UTC)}])
