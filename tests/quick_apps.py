"""Applications that are built quickly: what Litestar finds out about a handler, it finds out once for all tests.

Nearly every test of the API builds an application, and for each Litestar parses the annotations of all handlers and
copies every router deeply. What it parses depends on the function and on the names of dependencies alone, so the tests
remember it by these. A server builds one application in its life and goes without.
"""

from __future__ import annotations

from copy import copy, deepcopy
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import pytest


def pytest_configure(config: pytest.Config) -> None:
    quicken()


def quicken() -> None:
    from litestar._signature import SignatureModel
    from litestar.handlers import HTTPRouteHandler
    from litestar.plugins.pydantic import PydanticInitPlugin
    from litestar.utils.signature import ParsedSignature

    ParsedSignature.from_fn = staticmethod(_remembering_signatures(ParsedSignature.from_fn))
    PydanticInitPlugin.decoders = staticmethod(cache(PydanticInitPlugin.decoders))
    SignatureModel.create = staticmethod(_remembering_models(SignatureModel.create))
    HTTPRouteHandler.__deepcopy__ = _copy_with_owner


def _remembering_signatures(parse: Any) -> Any:
    parsed: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def from_fn(fn: Any, namespace: dict[str, Any]) -> Any:
        if namespace:
            return parse(fn, namespace)
        if fn not in parsed:
            parsed[fn] = parse(fn, namespace)
        return parsed[fn]

    return from_fn


def _remembering_models(create: Any) -> Any:
    created: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()

    def create_once(*, fn: Any, dependency_name_set: set[str], data_dto: Any, type_decoders: Any, **parsed: Any) -> Any:
        models, names = created.setdefault(fn, {}), frozenset(dependency_name_set)
        key = names, data_dto, tuple(type_decoders)
        if key not in models:
            models[key] = create(
                fn=fn, dependency_name_set=names, data_dto=data_dto, type_decoders=type_decoders, **parsed
            )
        return models[key]

    return create_once


def _copy_with_owner(handler: Any, memo: dict[int, Any]) -> Any:
    """A handler as a deep copy of its router needs it: its own, under the copied router, all else shared. Litestar
    replaces what it resolves for a handler and changes none of it in place."""
    memo[id(handler)] = copied = copy(handler)
    copied.owner = deepcopy(handler.owner, memo)
    return copied
