"""One pass over the bytes of a checked weights file: its SHA-256, the size of its numbers, and whether all are finite.

Knows raw tensors only. Numpy, no torch: the API process runs it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loraplex.adapters.safetensors_header import TensorInfo

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """max_abs: largest magnitude; norm: Frobenius norm. Both count finite numbers only."""

    max_abs: float
    norm: float
    is_finite: bool


def scan_weights(path: Path, tensors: Sequence[TensorInfo]) -> tuple[str, dict[str, TensorStatistics]]:
    """SHA-256 of the file, and the statistics of each tensor by name. `tensors` is what `read_header` returned."""
    sha256 = hashlib.sha256()
    statistics = {}
    with path.open("rb") as file:
        header_end = tensors[0].start if tensors else path.stat().st_size
        sha256.update(file.read(header_end))
        for tensor in tensors:
            max_abs, square_sum, is_finite = 0.0, 0.0, True
            for start in range(tensor.start, tensor.end, _CHUNK_BYTES):
                chunk = file.read(min(_CHUNK_BYTES, tensor.end - start))
                sha256.update(chunk)
                values = _as_float32(chunk, tensor.dtype)
                finite = np.isfinite(values)
                if not finite.all():
                    is_finite, values = False, values[finite]
                max_abs = max(max_abs, float(np.abs(values).max(initial=0.0)))
                square_sum += float(np.square(values, dtype=np.float64).sum())
            statistics[tensor.name] = TensorStatistics(max_abs, math.sqrt(square_sum), is_finite)
    return sha256.hexdigest(), statistics


def _as_float32(data: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of a float32's bits
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype(np.float32, copy=False)
