"""What Alembic runs around the migrations: on the connection that `loraplex.platform.migrate` hands over.

The connection's transaction is the caller's, so an upgrade of several steps happens as a whole or not at all. To draft
the next revision after a change of the tables, with a database at the newest one:

    from alembic import command
    from loraplex.platform import migrate

    with migrate.locked_connection("sqlite:///path") as connection:
        command.revision(migrate.alembic_config(connection), "what changes", autogenerate=True)
"""

from __future__ import annotations

from typing import Literal

from alembic import context

import loraplex.platform.ledger.schema
import loraplex.platform.schema  # noqa: F401  (its tables belong to the metadata too)
from loraplex.adapters.schema import Base, Name, UtcDateTime


def render_item(kind: str, item: object, _context: object) -> str | Literal[False]:
    """Migrations spell out column types: what ours mean may change after a migration is written."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, Name):
        return f'sa.String({item.length}).with_variant(sa.String({item.length}, collation="C"), "postgresql")'
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_type=True,
    compare_server_default=True,
    render_item=render_item,
    # SQLite cannot alter a constraint in place: Alembic copies the table there.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
