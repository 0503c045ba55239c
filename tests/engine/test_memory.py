"""One budget of memory for adapters and the KV cache: who gets what, and what is refused."""

from __future__ import annotations

import pytest
from engine_running import start_engine

from loraplex.adapters.types import BaseShape, LoraSite, LoraSlice
from loraplex.engine.build import EngineConfigError
from loraplex.engine.memory import AdapterNeeds, Budget, BudgetExceeded, adapter_needs, split_memory

GIB = 1 << 30
LLAMA_8B = BaseShape(
    "LlamaForCausalLM",
    128256,
    32,
    (
        LoraSite("qkv", 4096, tuple(LoraSlice(name, width) for name, width in (("q", 4096), ("k", 1024), ("v", 1024)))),
        LoraSite("o", 4096, (LoraSlice("o", 4096),)),
        LoraSite("gate_up", 4096, (LoraSlice("gate", 14336), LoraSlice("up", 14336))),
        LoraSite("down", 14336, (LoraSlice("down", 4096),)),
    ),
)


def needs_of_llama(**options) -> AdapterNeeds:
    defaults = {"max_num_seqs": 64, "max_rank": 256, "max_file_bytes": GIB // 2, "pinned_share": 0.5}
    return adapter_needs(LLAMA_8B, 2, **defaults | options)


def test_adapters_get_what_a_full_batch_uses_and_the_cache_gets_the_rest():
    """64 sequences, each with a rank-16 adapter of its own (84 MB in bf16), on a GPU with 54 GiB to share."""
    split = split_memory(Budget(54 * GIB, is_limit=True), needs_of_llama())

    assert split.adapter_bytes == 64 * 16 * 2 * 32 * (3 * 4096 + 6144 + 8192 + 2 * 18432 + 18432)
    assert split.adapter_bytes + split.kv_cache_bytes == 54 * GIB


@pytest.mark.parametrize(
    ("budget", "needs", "adapters"),
    [
        (9 * GIB, needs_of_llama(), 3 * GIB),  # a third, for a part of the batch
        (4 * GIB, needs_of_llama(max_num_seqs=1), GIB),  # the largest file that is accepted, beside pins
        (1 * GIB, needs_of_llama(), GIB // 2),  # half, for as large a one as may be
        (4 * GIB, needs_of_llama(max_num_seqs=1, max_rank=1, pinned_share=0), 16 * 2 * 32 * 81920),
    ],
)
def test_little_memory_is_shared(budget, needs, adapters):
    """Neither part starves the other."""
    assert split_memory(Budget(budget, is_limit=True), needs).adapter_bytes == pytest.approx(adapters, rel=0.01)


def test_what_is_set_wins():
    """Of a limit the other part gets what is left; beside a default it gets what is usual."""
    needs = AdapterNeeds(batch_bytes=100, largest_bytes=10)
    limit, default = Budget(600, is_limit=True), Budget(600, is_limit=False)
    assert split_memory(limit, needs, kv_cache_bytes=550).adapter_bytes == 50
    assert split_memory(limit, needs, kv_cache_bytes=50).adapter_bytes == 100
    assert split_memory(limit, needs, adapter_bytes=300).kv_cache_bytes == 300
    assert split_memory(default, needs, kv_cache_bytes=5000).adapter_bytes == 100
    assert split_memory(default, needs, adapter_bytes=5000).kv_cache_bytes == 500
    for options in ({"adapter_bytes": 600}, {"kv_cache_bytes": 700}, {"adapter_bytes": 300, "kv_cache_bytes": 301}):
        with pytest.raises(BudgetExceeded, match="--memory-bytes"):
            split_memory(limit, needs, **options)


def test_an_engine_takes_the_budget_that_it_is_given(tiny_model_dir, tmp_path):
    """Both parts come out of it; a part that does not fit is told before anything is allocated."""
    none = {"kv_cache_bytes": None, "adapter_device_bytes": None}
    built = start_engine(tiny_model_dir, tmp_path / "blobs", memory_bytes=12 << 20, **none)
    built.engine.close()

    assert built.memory.adapter_bytes + built.memory.kv_cache_bytes == 12 << 20
    assert built.num_pages == built.memory.kv_cache_bytes // (2 * 2 * 2 * 16 * 16 * 4)
    with pytest.raises(EngineConfigError, match="--kv-cache-bytes"):
        start_engine(tiny_model_dir, tmp_path / "blobs", memory_bytes=12 << 20)
