"""Where the kernels look up an adapter: `ops.LoraBatch.table`, kept on the device and filled as adapters appear.

Knows the tables of `DeviceAdapter`; knows no sequences and no weights.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from loraplex.adapters.device_adapter import DeviceAdapter
from loraplex.engine.step_buffer import StepBuffer


class AdapterTable:
    """Every adapter has a row from its first step on, until the row is needed for another.

    tensor  [max_adapters, num_sites, columns] int64 on the device; rows that no adapter has are undefined.
    """

    def __init__(self, max_adapters: int, num_sites: int, columns: int, device: torch.device) -> None:
        self.tensor = torch.zeros((max_adapters, num_sites, columns), dtype=torch.int64, device=device)
        # by identity: an adapter that was evicted and loaded again is another object, at another place
        self._rows: OrderedDict[int, tuple[DeviceAdapter, int]] = OrderedDict()  # least recently used first
        self._arrivals: list[tuple[DeviceAdapter, int]] = []

    def row_of(self, adapter: DeviceAdapter) -> int:
        """The adapter's row, which is filled once `stage` has been called and its result stored.

        One step may ask for at most max_adapters different ones: then no row that it asked for is taken away.
        """
        known = self._rows.get(id(adapter))
        if known is not None:
            self._rows.move_to_end(id(adapter))
            return known[1]
        row = len(self._rows)
        if row == len(self.tensor):
            _, (_, row) = self._rows.popitem(last=False)
        self._rows[id(adapter)] = (adapter, row)
        self._arrivals.append((adapter, row))
        return row

    def stage(self, buffer: StepBuffer) -> list[tuple[int, Tensor]]:
        """Put the adapters that have a row since the last call into the step's buffer: (row, its content to be)."""
        staged = []
        for adapter, row in self._arrivals:
            array, content = buffer.take("int64", *self.tensor.shape[1:])
            np.copyto(array, adapter.table.numpy())
            staged.append((row, content))
        self._arrivals.clear()
        return staged

    def store(self, staged: list[tuple[int, Tensor]]) -> None:
        """Fill the rows from the buffer, which has reached the device."""
        for row, content in staged:
            self.tensor[row].copy_(content)
