"""JSON values for msgspec types: valid ones, odd ones that are valid all the same, and ones with one thing broken.

Knows types; `pools` has what is odd inside of them. Knows no endpoint.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from fuzzing.pools import NO_JSON, NUMBERS, ODD, SMALL, TEXTS, USUAL
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from msgspec import inspect

Values = SearchStrategy[Any]

_plain_values: Values = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.text(max_size=8),
    st.sampled_from(NO_JSON),
)
_keys: Values = st.sampled_from(TEXTS) | st.text(max_size=4)
anything: Values = st.recursive(
    _plain_values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=5,
)


def documents(struct: type, known: dict[str, Sequence[Any]]) -> Values:
    """Bodies for a struct, of which one field in most cases is odd or broken, or all. known: by field, what exists on
    the server."""
    kind, there = inspect.type_info(struct), _Known(known)
    usual, odd, broken = _plain(kind, "", there, 0), _with_one_odd(kind, there), _broken(kind, "", there, 0)
    return st.integers(0, 9).flatmap(
        lambda dice: usual if dice < 2 else odd if dice < 7 else broken if dice < 9 else anything
    )


def odd_ones(struct: type, known: dict[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Usual bodies but for one field, with each odd value of each field once."""
    kind = inspect.type_info(struct)
    assert isinstance(kind, inspect.StructType)
    required = [field.encode_name for field in kind.fields if field.required]
    usual = {name: next(iter([*known.get(name, ()), *USUAL.get(name, ()), "a"])) for name in required}
    small = [name for name in SMALL if name in struct.__struct_fields__][:1]
    for field in kind.fields:
        for value in (*ODD.get(field.encode_name, ()), *TEXTS, *NUMBERS, None, [], {}, True):
            yield {**{name: SMALL[name] for name in small}, **usual, field.encode_name: value}


class _Known(dict[str, Sequence[Any]]):
    """Hashable by what it is, so that strategies are made once."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


def _with_one_odd(kind: Any, known: _Known) -> Values:
    """Usual, but for one field that is odd inside of its type, or just outside."""
    names = [field.encode_name for field in kind.fields if field.encode_name in ODD]
    if not names:
        return _struct(kind, known, 0)
    change = st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(list(ODD[name]))))
    return st.tuples(_struct(kind, known, 0), change).map(lambda pair: {**pair[0], pair[1][0]: pair[1][1]})


def _valid(kind: Any, name: str, known: _Known, depth: int) -> Values:
    """Values of the type: such that exist or are usual, or else any."""
    pool = [*known.get(name, ()), *USUAL.get(name, ())]
    return st.sampled_from(pool) if pool else _plain(kind, name, known, depth)


def _plain(kind: Any, name: str, known: _Known, depth: int) -> Values:
    match kind:
        case inspect.Metadata():
            return _plain(kind.type, name, known, depth)
        case inspect.StructType():
            return _struct(kind, known, depth)
        case inspect.UnionType():
            return st.one_of([_plain(member, name, known, depth) for member in kind.types])
        case inspect.ListType() | inspect.VarTupleType():
            most = min(kind.max_length or 3, (kind.min_length or 0) + 3)
            return st.lists(_valid(kind.item_type, "", known, depth + 1), min_size=kind.min_length or 0, max_size=most)
        case inspect.DictType():
            keys = _plain(kind.key_type, "", known, depth + 1).map(_key)
            return st.dictionaries(
                keys, _plain(kind.value_type, "", known, depth + 1), min_size=kind.min_length or 0, max_size=3
            )
        case inspect.IntType():
            low, high = _bounds(kind, 1)
            return st.integers(low, high) | st.sampled_from([low, high, min(max(low, 1), high)])
        case inspect.FloatType():
            low, high = _bounds(kind, 0)
            return st.floats(low, high, exclude_min=kind.gt is not None, exclude_max=kind.lt is not None) | st.integers(
                int(low) + (kind.gt is not None), int(high)
            )
        case inspect.StrType():
            return _strings(kind)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.LiteralType():
            return st.sampled_from(kind.values)
        case inspect.DateTimeType():
            return st.datetimes(timezones=st.timezones()).map(lambda moment: moment.isoformat()) | st.sampled_from(
                ODD["expires_at"]
            )
        case inspect.AnyType() | inspect.RawType():
            return anything
    raise AssertionError(f"no values are known for {kind}: add a case")


def _struct(kind: inspect.StructType, known: _Known, depth: int) -> Values:
    required = {
        field.encode_name: _valid(field.type, field.encode_name, known, depth + 1)
        for field in kind.fields
        if field.required
    }
    if kind.tag_field is not None:
        required[kind.tag_field] = st.just(kind.tag)
    optional = {
        field.encode_name: _valid(field.type, field.encode_name, known,
        depth + 1) for field in kind.fields if not field.required
    }  # fmt: skip

    @st.composite
    def made(draw: st.DrawFn) -> dict[str, Any]:
        given = draw(st.sets(st.sampled_from(sorted(optional)), max_size=4)) if optional else set()
        document = {name: draw(values) for name, values in required.items()} | {
            name: draw(optional[name]) for name in sorted(given)
        }
        bounds = {
            name: small for name, small in SMALL.items() if name in optional and not SMALL.keys() & document.keys()
        }
        return dict(list(bounds.items())[:1]) | document

    return made()


def _broken(kind: Any, name: str, known: _Known, depth: int) -> Values:
    """Values that are wrong in one place, as far as one can tell."""
    match kind:
        case inspect.Metadata():
            return _broken(kind.type, name, known, depth)
        case inspect.StructType():
            return _broken_struct(kind, known, depth)
        case inspect.UnionType() if depth < 8:
            return st.one_of([_broken(member, name, known, depth + 1) for member in kind.types])
        case inspect.ListType() | inspect.VarTupleType() if depth < 8:
            one = st.lists(_broken(kind.item_type, "", known, depth + 1), min_size=1, max_size=2)
            return (
                one
                | _plain(kind.item_type, "", known, depth + 1).map(
                    lambda item: [item] * ((kind.max_length or 5000) + 1) if (kind.max_length or 0) < 6000 else [item]
                )
                | anything
            )
        case inspect.DictType() if depth < 8:
            return (
                st.dictionaries(
                    st.sampled_from(TEXTS), _broken(kind.value_type, "", known, depth + 1), min_size=1, max_size=2
                )
                | anything
            )
        case inspect.IntType() | inspect.FloatType():
            edges = [bound for bound in (kind.ge, kind.gt, kind.le, kind.lt) if bound is not None]
            return st.sampled_from(
                [*NUMBERS, *NO_JSON, "1", True, None, *(edge + step for edge in edges for step in (-1, 0, 1))]
            )
        case inspect.StrType():
            most = kind.max_length if kind.max_length is not None and kind.max_length < 100_000 else 1000
            return st.sampled_from([*TEXTS, 1, None, True, [], "y" * most, "y" * (most + 1), "é" * most])
    return anything


def _broken_struct(kind: inspect.StructType, known: _Known, depth: int) -> Values:
    whole = _struct(kind, known, depth)
    fields = {field.encode_name: field.type for field in kind.fields}

    @st.composite
    def broken(draw: st.DrawFn) -> Any:
        document = dict(draw(whole))
        how = draw(st.integers(0, 9)) if fields else draw(st.integers(0, 1))
        name = draw(st.sampled_from(sorted(fields))) if fields else ""
        if how == 0:
            return draw(anything)
        if how == 1:
            document[draw(st.sampled_from(TEXTS))] = draw(anything)
        elif how == 2:
            document.pop(name, None)
        elif how == 3:
            document[name] = draw(anything)
        else:
            document[name] = draw(_broken(fields[name], name, known, depth + 1))
        return document

    return broken()


def _bounds(kind: inspect.IntType | inspect.FloatType, step: int) -> tuple[Any, Any]:
    low = kind.ge if kind.ge is not None else None if kind.gt is None else kind.gt + step
    high = kind.le if kind.le is not None else None if kind.lt is None else kind.lt - step
    most = 2**64 if isinstance(kind, inspect.IntType) else 1.7e308
    return -most if low is None else low, most if high is None else high


def _strings(kind: inspect.StrType) -> Values:
    if kind.pattern is not None:
        return st.from_regex(kind.pattern).filter(lambda text: len(text) <= (kind.max_length or 200))
    least, most = kind.min_length or 0, kind.max_length if kind.max_length is not None else 1 << 20
    return st.text(min_size=least, max_size=min(most, least + 12)) | st.sampled_from(
        [text for text in TEXTS if least <= len(text) <= most]
    )


def _key(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@functools.cache
def encodings() -> Values:
    """Functions from a document to the bytes of a body, nearly always its JSON."""
    return st.sampled_from([_json] * 12 + [_doubled, _cut, _with_bom, _in_latin, _deep, _behind, _spaced, _raw_unicode])


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _doubled(document: Any) -> bytes:
    text = json.dumps(document)
    return (text[:-1] + "," + text[1:]).encode() if isinstance(document, dict) and document else text.encode()


def _cut(document: Any) -> bytes:
    return _json(document)[:-1]


def _with_bom(document: Any) -> bytes:
    return b"\xef\xbb\xbf" + _json(document)


def _in_latin(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("latin-1", errors="replace")


def _raw_unicode(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("utf-8", errors="surrogatepass")


def _deep(document: Any) -> bytes:
    return b'{"a":' * 2000 + _json(document) + b"}" * 2000


def _behind(document: Any) -> bytes:
    return _json(document) + b"\x00"


def _spaced(document: Any) -> bytes:
    return b" \n\t" + _json(document) + b" " * 1000
