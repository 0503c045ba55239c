"""Tenants, API keys, base models, adapters, their versions and aliases.

Revision: 0001, the first.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ROW_ID = sa.String(32)
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)


def name_of(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    create_tenants()
    create_adapters()


def downgrade() -> None:
    for table in ("aliases", "adapter_versions", "adapters", "base_models", "api_keys", "tenants"):
        op.drop_table(table)


def create_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("slug", name_of(63), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("cache_salt", sa.LargeBinary(32), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("suspended_at", MOMENT),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tenants"),
        sa.UniqueConstraint("slug", name="uq_tenants_slug"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", name_of(12), nullable=False),
        sa.Column("tenant_id", ROW_ID),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("scopes", JSON, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT),
        sa.Column("revoked_at", MOMENT),
        sa.Column("last_used_at", MOMENT),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_api_keys_tenant_id_tenants"),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
    )
    op.create_index("ix_api_keys_tenant_id", "api_keys", ["tenant_id"])


def create_adapters() -> None:
    op.create_table(
        "base_models",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("name", name_of(127), nullable=False),
        sa.Column("shape_digest", sa.String(64), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_base_models"),
        sa.UniqueConstraint("name", name="uq_base_models_name"),
    )
    op.create_table(
        "adapters",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("tenant_id", ROW_ID, nullable=False),
        sa.Column("name", name_of(63), nullable=False),
        sa.Column("base_model_id", ROW_ID, nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("last_number", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_adapters_tenant_id_tenants"),
        sa.ForeignKeyConstraint(["base_model_id"], ["base_models.id"], name="fk_adapters_base_model_id_base_models"),
        sa.PrimaryKeyConstraint("id", name="pk_adapters"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_adapters_tenant_id_name"),
    )
    op.create_table(
        "adapter_versions",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("adapter_id", ROW_ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("max_rank", sa.Integer(), nullable=False),
        sa.Column("targets", JSON, nullable=False),
        sa.Column("report", JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("created_by", sa.String(12)),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_adapter_versions_adapter_id_adapters"),
        sa.PrimaryKeyConstraint("id", name="pk_adapter_versions"),
        sa.UniqueConstraint("adapter_id", "number", name="uq_adapter_versions_adapter_id_number"),
        sa.UniqueConstraint("adapter_id", "digest", name="uq_adapter_versions_adapter_id_digest"),
    )
    op.create_index("ix_adapter_versions_digest", "adapter_versions", ["digest"])
    op.create_table(
        "aliases",
        sa.Column("adapter_id", ROW_ID, nullable=False),
        sa.Column("name", name_of(63), nullable=False),
        sa.Column("version_id", ROW_ID, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_aliases_adapter_id_adapters"),
        sa.ForeignKeyConstraint(["version_id"], ["adapter_versions.id"], name="fk_aliases_version_id_adapter_versions"),
        sa.PrimaryKeyConstraint("adapter_id", "name", name="pk_aliases"),
    )
    op.create_index("ix_aliases_version_id", "aliases", ["version_id"])
