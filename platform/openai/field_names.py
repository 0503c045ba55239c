"""What a chat completion is refused for, said in the field names of the API that it was translated from.

Knows no API's fields: each has its table beside its translation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from loraplex.platform.errors import ApiError

FieldNames = Sequence[tuple[re.Pattern[str], str]]
"""Beginnings of a chat completion's fields, and what each is called instead. The first that fits counts."""


@contextmanager
def named_by(names: FieldNames) -> Iterator[None]:
    """An ApiError that is raised within names the field at fault as `names` have it.

    Of its message only the first mention of this field is changed: our messages name it before they quote the client,
    whose words, whatever they are, stay.
    """
    try:
        yield
    except ApiError as error:
        if error.param is not None:
            field, error.param = error.param, _own_name(error.param, names)
            error.message = _mentioning(error.message, field, error.param)
        raise


def _own_name(field: str, names: FieldNames) -> str:
    for pattern, name in names:
        if found := pattern.match(field):
            return found.expand(name) + field[found.end() :]
    return field


def _mentioning(message: str, field: str, own_name: str) -> str:
    """Fields are mentioned as 'field', or as parts of a sentence like "tokens in the messages"."""
    mention = re.compile(rf"('|\bin the ){re.escape(field)}(?![\w.\[])")
    return mention.sub(lambda found: found[1] + own_name, message, count=1)
