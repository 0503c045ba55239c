"""Aliases that split their traffic over versions, have revisions, and remember where they pointed.

Revision: 0002. What an alias points at now becomes the one target of its revision 1.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ROW_ID = sa.String(32)
NAME = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    with op.batch_alter_table("aliases") as aliases:
        aliases.add_column(sa.Column("revision", sa.Integer(), nullable=False, server_default="1"))
    with op.batch_alter_table("aliases") as aliases:
        aliases.alter_column("revision", server_default=None)
    create_tables()
    fill_tables()
    with op.batch_alter_table("aliases") as aliases:
        aliases.drop_index("ix_aliases_version_id")
        aliases.drop_constraint("fk_aliases_version_id_adapter_versions", type_="foreignkey")
        aliases.drop_column("version_id")


def create_tables() -> None:
    op.create_table(
        "alias_targets",
        sa.Column("adapter_id", ROW_ID, nullable=False),
        sa.Column("alias", NAME, nullable=False),
        sa.Column("version_id", ROW_ID, nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id", "alias"],
            ["aliases.adapter_id", "aliases.name"],
            name="fk_alias_targets_adapter_id_alias_aliases",
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["adapter_versions.id"], name="fk_alias_targets_version_id_adapter_versions"
        ),
        sa.PrimaryKeyConstraint("adapter_id", "alias", "version_id", name="pk_alias_targets"),
    )
    op.create_index("ix_alias_targets_version_id", "alias_targets", ["version_id"])
    op.create_table(
        "alias_moves",
        sa.Column("adapter_id", ROW_ID, nullable=False),
        sa.Column("alias", NAME, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("split", JSON, nullable=False),
        sa.Column("restores", sa.Integer()),
        sa.Column("moved_at", MOMENT, nullable=False),
        sa.Column("moved_by", sa.String(12)),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_alias_moves_adapter_id_adapters"),
        sa.PrimaryKeyConstraint("adapter_id", "alias", "revision", name="pk_alias_moves"),
    )


def fill_tables() -> None:
    aliases = sa.table("aliases", *map(sa.column, ("adapter_id", "name", "version_id", "updated_at")))
    versions = sa.table("adapter_versions", sa.column("id"), sa.column("number"))
    targets = sa.table("alias_targets", *map(sa.column, ("adapter_id", "alias", "version_id", "weight")))
    moves = sa.table(
        "alias_moves",
        *map(sa.column, ("adapter_id", "alias", "revision")),
        sa.column("split", JSON),
        sa.column("moved_at", MOMENT),
    )
    connection = op.get_bind()
    pointing = sa.select(aliases.c.adapter_id, aliases.c.name, aliases.c.version_id, sa.literal(1))
    connection.execute(sa.insert(targets).from_select(["adapter_id", "alias", "version_id", "weight"], pointing))
    moved_at = sa.type_coerce(aliases.c.updated_at, MOMENT).label("moved_at")
    pointed = sa.select(aliases.c.adapter_id, aliases.c.name, versions.c.number, moved_at)
    rows = [
        {"adapter_id": adapter_id, "alias": alias, "revision": 1, "split": {str(number): 1}, "moved_at": moved_at}
        for adapter_id, alias, number, moved_at in connection.execute(
            pointed.join(versions, versions.c.id == aliases.c.version_id)
        )
    ]
    if rows:
        connection.execute(sa.insert(moves), rows)


def downgrade() -> None:
    """An alias of several versions keeps the one with the largest weight."""
    with op.batch_alter_table("aliases") as aliases:
        aliases.add_column(sa.Column("version_id", ROW_ID))
    aliases_now = sa.table("aliases", *map(sa.column, ("adapter_id", "name", "version_id")))
    targets = sa.table("alias_targets", *map(sa.column, ("adapter_id", "alias", "version_id", "weight")))
    largest = (
        sa.select(targets.c.version_id)
        .where(targets.c.adapter_id == aliases_now.c.adapter_id, targets.c.alias == aliases_now.c.name)
        .order_by(targets.c.weight.desc())
        .limit(1)
        .scalar_subquery()
    )
    op.get_bind().execute(sa.update(aliases_now).values(version_id=largest))
    op.drop_table("alias_moves")
    op.drop_table("alias_targets")
    with op.batch_alter_table("aliases") as aliases:
        aliases.alter_column("version_id", existing_type=ROW_ID, nullable=False)
        aliases.create_foreign_key("fk_aliases_version_id_adapter_versions", "adapter_versions", ["version_id"], ["id"])
        aliases.create_index("ix_aliases_version_id", ["version_id"])
        aliases.drop_column("revision")
