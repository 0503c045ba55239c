"""Names as people write them: `[tenant/]adapter[@alias|@version]`, what each part may be, and weighted sums of names.

Knows nothing about which names exist.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from loraplex.adapters.errors import InvalidName

MAX_SLUG_LENGTH = 63
MAX_MODEL_NAME_LENGTH = 3 * MAX_SLUG_LENGTH + 2
MAX_BASE_NAME_LENGTH = 127
MAX_WEIGHT = 16.0

_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,62}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_WEIGHT = re.compile(r"[+-]?([0-9]{1,3}(\.[0-9]{0,6})?|\.[0-9]{1,6})")
_BASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A parsed name. `selector` is an alias or the digits of a version number; None: the registry chooses."""

    tenant: str | None
    adapter: str
    selector: str | None

    def __str__(self) -> str:
        tenant = "" if self.tenant is None else f"{self.tenant}/"
        selector = "" if self.selector is None else f"@{self.selector}"
        return f"{tenant}{self.adapter}{selector}"


@dataclass(frozen=True, slots=True)
class WeightedName:
    """One term of a sum: a name, not looked at yet, and what its adapter is multiplied by."""

    name: str
    weight: float = 1.0


def split_sum(text: str, field: str = "model") -> tuple[WeightedName, ...]:
    """The terms of `name*weight+name*weight`, where a weight of 1 may be left out. Raises InvalidName for a weight.

    No name holds a `+` or a `*`.
    """
    if "*" not in text and "+" not in text:
        return (WeightedName(text),)
    terms = [term.partition("*") for term in text.split("+")]
    return tuple(WeightedName(name, _weight(digits, field) if star else 1.0) for name, star, digits in terms)


def _weight(text: str, field: str) -> float:
    if _WEIGHT.fullmatch(text) and abs(float(text)) <= MAX_WEIGHT:
        return float(text)
    rule = f"write a decimal number from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}, as in `a*0.7+b*0.3`"
    raise InvalidName(field, f"{_shown(text)} is not a weight: {rule}")


def check_slug(value: str, field: str) -> str:
    """Return the name of a tenant or an adapter as it came, or raise InvalidName."""
    if _SLUG.fullmatch(value):
        return value
    rule = "use 1 to 63 characters of a-z, 0-9, '.', '_' and '-', the first a letter or digit"
    raise InvalidName(field, f"{_shown(value)} is not a valid name: {rule}")


def check_alias(value: str) -> str:
    """Return the alias as it came, or raise InvalidName. An alias starts with a letter: digits are version numbers."""
    if _ALIAS.fullmatch(value):
        return value
    rule = "use 1 to 63 characters of a-z, 0-9, '.', '_' and '-', the first a letter"
    raise InvalidName("alias", f"{_shown(value)} is not a valid alias: {rule}")


def check_base_name(value: str) -> str:
    """Return the name of a base model as it came, or raise InvalidName. No slash: before a slash stands a tenant."""
    if _BASE_NAME.fullmatch(value):
        return value
    rule = f"use 1 to {MAX_BASE_NAME_LENGTH} letters, digits, '.', '_' and '-', the first a letter or digit"
    raise InvalidName("base_model", f"{_shown(value)} is not a valid name: {rule}")


def check_text(value: str, field: str, max_length: int) -> str:
    """Return a text for people as it came, or raise InvalidName: it is bounded, and every database can store it."""
    if len(value) > max_length:
        raise InvalidName(field, f"at most {max_length} characters are allowed, not {len(value)}")
    if any(unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t" for character in value):
        raise InvalidName(field, "control characters are not allowed")
    return value


def version_number(selector: str) -> int | None:
    """The version number that a selector spells; None for an alias, and for digits that number no version."""
    return int(selector) if _NUMBER.fullmatch(selector) else None


def without_base(name: str, base: str) -> str:
    """The adapter's name in `base:adapter`, as SGLang, Ray Serve and Together write it; any other name as it came.

    No name holds a colon, so the first one ends the base's.
    """
    return name.removeprefix(f"{base}:")


def parse_adapter_name(name: str, field: str) -> ModelName:
    """Split `[tenant/]adapter`, which names no version, into its checked parts, or raise InvalidName."""
    parsed = parse_model_name(name, field)
    if parsed.selector is not None:
        raise InvalidName(field, f"{_shown(name)} names a version; name the adapter alone, without @")
    return parsed


def parse_model_name(name: str, field: str = "model") -> ModelName:
    """Split `[tenant/]adapter[@alias|@version]` into its checked parts, or raise InvalidName."""
    if len(name) > MAX_MODEL_NAME_LENGTH:
        raise InvalidName(field, f"the name has {len(name)} characters; at most {MAX_MODEL_NAME_LENGTH} are allowed")
    path, at, selector = name.partition("@")
    tenant, slash, adapter = path.rpartition("/")
    if slash:
        check_slug(tenant, field)
    check_slug(adapter, field)
    if at and version_number(selector) is None:
        check_alias(selector)
    return ModelName(tenant if slash else None, adapter, selector if at else None)


def _shown(value: str) -> str:
    """The value for a message: quoted, escaped and cut, since it came from outside."""
    return ascii(value if len(value) <= MAX_SLUG_LENGTH else value[:MAX_SLUG_LENGTH] + "...")
