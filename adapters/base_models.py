"""Which base models there are, each with the shape that its adapters must fit.

Knows rows. A name stands for one shape for good; other weights of that shape may come under it.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from loraplex.adapters.database import Database
from loraplex.adapters.errors import BaseModelConflict
from loraplex.adapters.names import check_base_name
from loraplex.adapters.schema import BaseModel


async def register_base_model(database: Database, name: str, shape_digest: str, source: str) -> None:
    """Let adapters be created on the model; again is fine. Raises InvalidName, BaseModelConflict.

    shape_digest: `types.BaseShape.digest`. source: where it is loaded from, for people.
    """
    check_base_name(name)
    try:
        await _register(database, name, shape_digest, source)
    except IntegrityError:
        # Another server registered it in between; now there is a row to compare with.
        await _register(database, name, shape_digest, source)


async def _register(database: Database, name: str, shape_digest: str, source: str) -> None:
    async with database.transaction() as session:
        known = await session.scalar(select(BaseModel).where(BaseModel.name == name))
        if known is None:
            session.add(BaseModel(name=name, shape_digest=shape_digest, source=source))
        elif known.shape_digest == shape_digest:
            known.source = source
        else:
            raise BaseModelConflict(
                f'served_model_name: "{name}" is a model of another shape in this database ({known.source}); '
                "its adapters would not fit. Serve this model under another name or with another database"
            )
