"""The sizes of the offline workloads, the same for every engine. Needs nothing: also read where there is no torch."""

from __future__ import annotations

from dataclasses import dataclass

MAX_NUM_SEQS = 32
_CONTEXT_OUTPUT = 64


@dataclass(frozen=True)
class Shape:
    """`in_flight` requests at once, each of `prompt_len` tokens in and `output_len` out."""

    in_flight: int
    prompt_len: int
    output_len: int

    @property
    def quick(self) -> Shape:
        """So small that it only shows that everything runs."""
        return Shape(min(self.in_flight, 4), min(self.prompt_len, 32), min(self.output_len, 8))

    def __str__(self) -> str:
        return f"{self.in_flight}:{self.prompt_len}:{self.output_len}"


DECODE_16_128 = Shape(32, 16, 128)
DECODE_64_64 = Shape(32, 64, 64)
PREFILL = Shape(32, 512, 1)
CONTEXT_2048 = Shape(16, 2048 - _CONTEXT_OUTPUT // 2, _CONTEXT_OUTPUT)  # the decode steps' mean context is 2,048
