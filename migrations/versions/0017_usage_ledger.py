"""The usage ledger: requests, their sums by the hour, contents that tenants want kept, and prices.

Revision: 0017.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

ROW_ID = sa.String(32)
MOMENT = sa.DateTime(timezone=True)
GROUP = ("tenant_id", "hour", "key_id", "endpoint", "adapter", "version", "digest", "currency")
SUMS = (
    "requests", "errors", "answered", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_micros", "queue_ms",
    "load_ms", "ttft_ms", "total_ms",
)  # fmt: skip


def name(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("tenants", sa.Column("content_days", sa.Integer()))
    create_records()
    create_hours()
    create_contents()
    op.create_table(
        "prices",
        sa.Column("adapter", name(127), nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        *(sa.Column(kind, sa.BigInteger(), nullable=False) for kind in ("prompt", "cached", "completion")),
        sa.Column("changed_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("adapter", name="pk_prices"),
    )


def downgrade() -> None:
    for table in ("prices", "usage_contents", "usage_hours", "usage_records"):
        op.drop_table(table)
    op.drop_column("tenants", "content_days")


def create_records() -> None:
    op.create_table(
        "usage_records",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("request_id", name(128), nullable=False),
        sa.Column("server_id", sa.String(32), nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("tenant_id", ROW_ID, nullable=False),
        sa.Column("key_id", name(12), nullable=False),
        sa.Column("endpoint", sa.String(16), nullable=False),
        sa.Column("asked", sa.String(128), nullable=False),
        sa.Column("model", sa.String(512), nullable=False),
        sa.Column("adapter", name(255), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("choices", sa.Integer(), nullable=False),
        *(
            sa.Column(column, sa.BigInteger(), nullable=False)
            for column in ("prompt_tokens", "cached_tokens", "completion_tokens")
        ),
        *(sa.Column(column, sa.BigInteger()) for column in ("queue_ms", "load_ms", "ttft_ms")),
        sa.Column("total_ms", sa.BigInteger(), nullable=False),
        sa.Column("finish_reason", sa.String(16), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("cost_micros", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage_records"),
    )
    op.create_index("ix_usage_records_tenant_id_started_at_id", "usage_records", ["tenant_id", "started_at", "id"])
    op.create_index("ix_usage_records_started_at_id", "usage_records", ["started_at", "id"])
    op.create_index("ix_usage_records_request_id", "usage_records", ["request_id"])


def create_hours() -> None:
    op.create_table(
        "usage_hours",
        sa.Column("tenant_id", ROW_ID, nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("key_id", name(12), nullable=False),
        sa.Column("endpoint", sa.String(16), nullable=False),
        sa.Column("adapter", name(255), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        *(sa.Column(column, sa.BigInteger(), nullable=False) for column in SUMS),
        sa.PrimaryKeyConstraint(*GROUP, name="pk_usage_hours"),
    )
    op.create_index("ix_usage_hours_hour", "usage_hours", ["hour"])


def create_contents() -> None:
    op.create_table(
        "usage_contents",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("tenant_id", ROW_ID, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage_contents"),
    )
    op.create_index("ix_usage_contents_tenant_id", "usage_contents", ["tenant_id"])
    op.create_index("ix_usage_contents_expires_at", "usage_contents", ["expires_at"])
