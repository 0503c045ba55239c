"""One budget of device memory, split between adapters and the KV cache. Knows numbers and no tensor.

The split is fixed at start. Byte for byte a page of keys and values costs more to have again than an adapter does, a
prefill against a copy, so adapters get what a full batch can use at once and the KV cache gets all the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from loraplex.adapters.types import BaseShape

TYPICAL_RANK = 16
"""Of the adapters that a batch is expected to be full of, each sequence with another one."""

MOST_OF_BUDGET = 1 / 3
"""That adapters get for a full batch. For the largest one that is accepted they get up to half, if it takes that."""


class BudgetExceeded(ValueError):
    """The parts that were asked for take the whole; the message names the settings."""


@dataclass(frozen=True, slots=True)
class Budget:
    """is_limit: there is no more, so that what one part is given the other one lacks. Else it is a default, as large
    parts of which are usual."""

    size_bytes: int
    is_limit: bool


@dataclass(frozen=True, slots=True)
class AdapterNeeds:
    """Bytes on the device: of adapters for a full batch, and for one of the largest rank that is accepted, beside all
    pins. Rows of the vocabulary that few adapters have of their own are not reckoned with."""

    batch_bytes: int
    largest_bytes: int


@dataclass(frozen=True, slots=True)
class MemorySplit:
    """Bytes of each part."""

    adapter_bytes: int
    kv_cache_bytes: int


def adapter_needs(
    shape: BaseShape, itemsize: int, *, max_num_seqs: int, max_rank: int, max_file_bytes: int, pinned_share: float
) -> AdapterNeeds:
    """max_file_bytes: of an adapter's weights, of which a number takes 2 at least."""
    numbers_per_rank = shape.num_layers * sum(
        site.in_features + part.out_features for site in shape.sites for part in site.slices
    )
    largest_bytes = min(max_rank * numbers_per_rank, max_file_bytes // 2) * itemsize
    batch_bytes = max_num_seqs * TYPICAL_RANK * numbers_per_rank * itemsize
    return AdapterNeeds(batch_bytes, int(largest_bytes / (1 - pinned_share)))


def split_memory(
    budget: Budget, needs: AdapterNeeds, *, adapter_bytes: int | None = None, kv_cache_bytes: int | None = None
) -> MemorySplit:
    """The given parts are taken as they are. Raises BudgetExceeded if they leave nothing of a limit for the other."""
    whole = budget.size_bytes
    usual = max(min(needs.batch_bytes, int(whole * MOST_OF_BUDGET)), min(needs.largest_bytes, whole // 2))
    adapters = usual if adapter_bytes is None else adapter_bytes
    kv_cache = whole - usual if kv_cache_bytes is None else kv_cache_bytes
    if budget.is_limit and adapters + kv_cache > whole:
        adapters = min(adapters, whole - kv_cache) if adapter_bytes is None else adapters
        kv_cache = whole - adapters if kv_cache_bytes is None else kv_cache
    if min(adapters, kv_cache) <= 0 or (budget.is_limit and adapters + kv_cache > whole):
        raise BudgetExceeded(
            f"{adapter_bytes or 0} bytes for adapters and {kv_cache_bytes or 0} for the KV cache do not fit into "
            f"{whole}; lower --adapter-device-bytes or --kv-cache-bytes, or raise --memory-bytes"
        )
    return MemorySplit(adapters, kv_cache)
