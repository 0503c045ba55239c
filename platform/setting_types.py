"""How settings are written as text, and the types that they have then. Knows no setting by name."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Annotated

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    InstanceOf,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_settings import NoDecode

from loraplex.platform.limits.rules import TenantLimits

_SIZE = TypeAdapter(ByteSize)


def parse_size(value: object) -> int:
    """A number, which may have the unit of a size. Raises ValueError."""
    try:
        return int(_SIZE.validate_python(value))
    except ValidationError:
        raise ValueError("write a number, which may have a unit, as in 512MiB") from None


Bytes = Annotated[int, BeforeValidator(parse_size), Field(ge=1, le=1 << 50)]
"""A size in bytes: 1048576, "512MiB" or "2GB"."""


class LoraModule(BaseModel):
    """An adapter that is published from a folder at start, in vLLM's two forms: `name=path`, or JSON of these fields.

    `base_model_name` is vLLM's label and decides nothing here: an adapter's base is the model that is served.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    path: str = Field(min_length=1)
    base_model_name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.startswith("{"):
            return json.loads(value)
        name, equals, path = value.partition("=")
        if not equals:
            raise ValueError('write NAME=PATH, or JSON: {"name": "NAME", "path": "PATH"}')
        return {"name": name, "path": path}

    @property
    def folder(self) -> Path:
        return Path(self.path).expanduser().absolute()


def _split_words(value: object) -> object:
    return shlex.split(value) if isinstance(value, str) else value


def _split_paths(value: object) -> object:
    """An empty text is no path: it would be the working directory."""
    paths = value.split(os.pathsep) if isinstance(value, str) else value
    return [path for path in paths if path != ""] if isinstance(paths, list | tuple) else paths


def _split_list(value: object) -> object:
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _parse_limits(value: object) -> object:
    """`name=number,...`; sizes may have their unit."""
    if not isinstance(value, str):
        return value
    limits: dict[str, int] = {}
    try:
        for word in value.replace(",", " ").split():
            name, _, number = word.partition("=")
            if name in limits:
                raise ValueError(f"{name} is there twice")
            limits[name] = parse_size(number)
        return msgspec.convert(limits, TenantLimits)
    except ValueError as error:
        raise ValueError(f"{error}; write NAME=NUMBER of: {', '.join(TenantLimits.__struct_fields__)}") from None


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list), Field(max_length=1000)]
"""Words; as one text they are separated by commas or spaces."""

Endpoint = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.\[\]:-]+(/[\w.~/-]*)?$", max_length=500)]
"""Where a service is: no credentials and no query in it."""

LoraModules = Annotated[tuple[LoraModule, ...], NoDecode, BeforeValidator(_split_words)]
"""As one text they are words of a shell."""

Folders = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split_paths)]
"""As one text they are separated as in PATH."""

Limits = Annotated[InstanceOf[TenantLimits], NoDecode, BeforeValidator(_parse_limits)]
"""As one text: `name=number,...`."""
