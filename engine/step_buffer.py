"""The one buffer in which all inputs of a step lie, so that they reach the device in one copy.

Knows arrays and a device; knows nothing of what the arrays mean.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

ALIGN_BYTES = 16
"""Every array begins at a multiple of this: of any 8-byte type's size, and what GPU kernels load widest."""

_TYPES = {"int64": torch.int64, "int32": torch.int32, "float32": torch.float32}


class StepBuffer:
    """Arrays are laid out one after the other in the order they are asked for: the same shapes in the same order lie at
    the same addresses in every step, which is what recorded CUDA graphs rely on.

    On a GPU the host's side is pinned memory and `copy` sends it. On the CPU both sides are the same memory, so a step
    must have been computed before the next is laid out.
    """

    def __init__(self, capacity_bytes: int, device: torch.device) -> None:
        self.copies = 0
        on_host = device.type == "cpu"
        capacity = -(-capacity_bytes // ALIGN_BYTES) * ALIGN_BYTES
        self._host = torch.zeros(capacity, dtype=torch.uint8, pin_memory=not on_host)
        self._device = self._host if on_host else torch.zeros(capacity, dtype=torch.uint8, device=device)
        # of every type the whole buffer once, so that an array costs a slice on each side
        self._arrays = {name: self._host.view(dtype).numpy() for name, dtype in _TYPES.items()}
        self._tensors = {name: self._device.view(dtype) for name, dtype in _TYPES.items()}
        self._end = 0
        self._sent = None if on_host else _new_event()

    @staticmethod
    def bytes_for(*shapes: tuple[str, tuple[int, ...]]) -> int:
        """Capacity for arrays of these types and shapes."""
        return sum(_TYPES[name].itemsize * math.prod(shape) + ALIGN_BYTES for name, shape in shapes)

    def clear(self) -> None:
        """Lay out anew; waits until the last copy has read the host's side."""
        if self._sent is not None:
            self._sent.synchronize()
        self._end = 0

    def take(self, dtype: str, *shape: int) -> tuple[np.ndarray, Tensor]:
        """The next array, to be filled, and the tensor that holds the same once `copy` has run."""
        length, itemsize = math.prod(shape), _TYPES[dtype].itemsize
        start = self._end // itemsize
        end = start + length
        array, tensor = self._arrays[dtype][start:end], self._tensors[dtype][start:end]
        assert len(array) == length, "a step is larger than its limits"
        self._end = -(-end * itemsize // ALIGN_BYTES) * ALIGN_BYTES
        return (array, tensor) if len(shape) == 1 else (array.reshape(shape), tensor.view(shape))

    def copy(self) -> None:
        """Send what was laid out since `clear`, in the order of the device's current stream."""
        if self._sent is not None:
            self._device[: self._end].copy_(self._host[: self._end], non_blocking=True)
            self._sent.record()
            self.copies += 1


def _new_event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no annotations here
