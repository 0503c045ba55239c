"""What a PEFT method is to the checks: for one module, the tensors that it saves and the LoRA that they amount to.

Knows neither a method nor a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self

from loraplex.adapters.config_reader import ConfigReader
from loraplex.adapters.types import ModuleSpec


@dataclass(frozen=True, slots=True)
class Expected:
    """What PEFT saves for one module and what is done with it.

    shapes   of the tensors, by the end of their names
    product  those that are multiplied with each other: where one of them is zero nothing is added. None: something may
             be done whatever they are.
    ignored  how the ends of tensors begin that only steer training
    shared   by their whole names, tensors that all modules use: the least shape that this module needs
    """

    spec: ModuleSpec
    shapes: Mapping[str, tuple[int, ...]]
    product: tuple[str, ...] | None
    ignored: tuple[str, ...] = ()
    shared: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Method(Protocol):
    """One `peft_type` with the fields of its configuration."""

    @classmethod
    def read(cls, reader: ConfigReader) -> Self:
        """What is wrong is noted by the reader."""

    def expect(self, module: str, inputs: int, outputs: int) -> Expected | str:
        """Or why the method does nothing to this module, and what to do instead."""
