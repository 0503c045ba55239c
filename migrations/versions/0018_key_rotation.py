"""API keys that rotate and are bound to adapters; accounts for which an OpenID provider vouches.

Revision: 0018.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)
FINGERPRINT = sa.LargeBinary(32)


def name(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("revision", sa.Integer(), nullable=False, server_default="1"))
    with op.batch_alter_table("api_keys") as keys:
        keys.alter_column("revision", server_default=None)
    for column in (
        sa.Column("rotated_at", MOMENT),
        sa.Column("old_sha256", FINGERPRINT),
        sa.Column("old_ends_at", MOMENT),
        sa.Column("old_used_at", MOMENT),
        sa.Column("adapters", JSON),
    ):
        op.add_column("api_keys", column)
    with op.batch_alter_table("accounts") as accounts:
        accounts.alter_column("password_hash", existing_type=sa.String(255), nullable=True)
    op.create_table(
        "account_identities",
        sa.Column("issuer", name(255), nullable=False),
        sa.Column("subject", name(255), nullable=False),
        sa.Column("account_id", name(12), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_account_identities_account_id_accounts"),
        sa.PrimaryKeyConstraint("issuer", "subject", name="pk_account_identities"),
        sa.UniqueConstraint("account_id", name="uq_account_identities_account_id"),
    )


def downgrade() -> None:
    """Accounts without a password go: nobody could sign in to them."""
    op.drop_table("account_identities")
    op.execute("DELETE FROM web_sessions WHERE account_id IN (SELECT id FROM accounts WHERE password_hash IS NULL)")
    op.execute("DELETE FROM accounts WHERE password_hash IS NULL")
    with op.batch_alter_table("accounts") as accounts:
        accounts.alter_column("password_hash", existing_type=sa.String(255), nullable=False)
    for column in ("adapters", "old_used_at", "old_ends_at", "old_sha256", "rotated_at", "revision"):
        op.drop_column("api_keys", column)
