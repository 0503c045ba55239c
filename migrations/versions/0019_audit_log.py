"""The audit log: entries that cannot be changed, and the end of their chain; failed sign-ins of accounts are counted.

Revision: 0019.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

ROW_ID = sa.String(32)
MOMENT = sa.DateTime(timezone=True)

SQLITE = [
    f"""
    CREATE TRIGGER audit_entries_no_{event} BEFORE {event.upper()} ON audit_entries
    BEGIN SELECT RAISE(ABORT, 'entries of the audit log are never changed'); END
    """
    for event in ("update", "delete")
]
POSTGRES = [
    """
    CREATE FUNCTION refuse_change_of_audit_entries() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'entries of the audit log are never changed'; END $$
    """,
    """
    CREATE TRIGGER audit_entries_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_audit_entries()
    """,
]


def name(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("tenant_id", ROW_ID),
        sa.Column("action", name(40), nullable=False),
        sa.Column("object", name(200), nullable=False),
        sa.Column("actor_kind", sa.String(16), nullable=False),
        sa.Column("actor_id", sa.String(64)),
        sa.Column("actor_name", sa.String(64)),
        sa.Column("actor_tenant_id", ROW_ID),
        sa.Column("request_id", sa.String(128)),
        sa.Column("address", sa.String(64)),
        sa.Column("before", sa.Text()),
        sa.Column("after", sa.Text()),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_audit_entries"),
    )
    op.create_index("ix_audit_entries_tenant_id_number", "audit_entries", ["tenant_id", "number"])
    op.create_index("ix_audit_entries_tenant_id_object_number", "audit_entries", ["tenant_id", "object", "number"])
    for column in ("action", "actor_id", "actor_name"):
        op.create_index(f"ix_audit_entries_{column}_number", "audit_entries", [column, "number"])
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_head"),
    )
    op.bulk_insert(head, [{"id": 1, "number": 0, "hash": "0" * 64}])
    for statement in SQLITE if op.get_bind().dialect.name == "sqlite" else POSTGRES:
        op.execute(statement)
    op.add_column("accounts", sa.Column("failed_logins", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("accounts") as accounts:
        accounts.alter_column("failed_logins", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("accounts") as accounts:
        accounts.drop_column("failed_logins")
    op.drop_table("audit_head")
    op.drop_table("audit_entries")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_change_of_audit_entries()")
