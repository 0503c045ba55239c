"""The Triton kernels keep the contract of `ops.Kernels`: compiled where there is a GPU, else in Triton's interpreter.

Triton reads TRITON_INTERPRET when it is first imported, and importing Transformers' models imports it. So the variable
is set in tests/conftest.py, before any test module is collected.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from kernels import cases
from kernels.cases import CASES, Case, RowSettings, check
from kernels.tiled import TILES

from loraplex.kernels.ops import scale_bits
from loraplex.kernels.reference import ReferenceKernels
from loraplex.kernels.triton_backend import TritonKernels

# Compiled, Triton 3.9 announces another default for 3.10; fused or not, the tolerance holds.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")

COMPILED = torch.cuda.is_available()
DEVICE = torch.device("cuda" if COMPILED else "cpu")
DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def runs_here(case: Case, dtype: torch.dtype) -> bool:
    """The interpreter takes milliseconds per tile: fp16, and most work on a large vocabulary, are for GPUs."""
    if COMPILED:
        return True
    if "vocab49152" in case.name:
        return dtype == torch.bfloat16 and case.name.startswith(("none", "greedy", "mixed"))
    return dtype != torch.float16


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{case}-{str(dtype).removeprefix('torch.')}")
        for case in CASES
        for dtype in DTYPES
        if runs_here(case, dtype)
    ],
)
def test_every_op_equals_the_fp64_reference(case, dtype):
    """Each op gives the reference's result within the tolerance and changes only what it says it writes."""
    check(TritonKernels(), case, DEVICE, dtype)


@pytest.mark.parametrize("tiles", ["fused", "many sums", "wide ranks"])
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name) for case in CASES if case.op == "add_lora" and "in571" in case.name]
)
def test_lora_does_not_depend_on_its_tiles(case, tiles):
    """One launch or two, few sums or many: always the reference's result."""
    check(TILES[tiles], case, DEVICE, torch.bfloat16)


@pytest.mark.parametrize("splits", [2, 8, 32])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 32), (4, 4, 80), (32, 1, 16)])
@pytest.mark.parametrize("window", [None, 90])
def test_decodes_split_over_their_contexts_equal_the_reference(splits, heads, kv_heads, head_dim, window):
    """Contexts shorter than a split, longer than all of them, and none at all, in one batch."""
    sequences = ((1, 1), (0, 5), (1, 64), (1, 65), (1, 500))
    shapes = {"sequences": sequences, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "window": window}
    case = Case("paged_attention", "splits", partial(cases.attention_args, **shapes), (), head_dim + 500)
    check(TILES[f"{splits} splits"], case, DEVICE, torch.bfloat16)


@pytest.mark.parametrize("page_tokens", [1, 4, 64, 128])
def test_pages_of_any_power_of_two_serve_attention(page_tokens, monkeypatch):
    """A context is read right whether its pages are smaller or larger than a tile."""
    monkeypatch.setattr(cases, "PAGE_TOKENS", page_tokens)
    shapes = {"sequences": ((1, 70), (9, 130), (3, 3)), "heads": 6, "kv_heads": 2, "head_dim": 32}
    for window in (None, 33):
        case = Case("paged_attention", "pages", partial(cases.attention_args, **shapes, window=window))
        check(TritonKernels(), case, DEVICE, torch.bfloat16)


def test_attention_reads_nothing_outside_the_context():
    """NaN in page 0, in the tails of last pages and before the window does not reach the result."""
    sequences = ((1, 70), (5, 37), (3, 3))
    args = cases.attention_args(
        DEVICE, torch.float32, 0, sequences=sequences, heads=4, kv_heads=2, head_dim=32, window=7
    )
    _, key_pages, value_pages, batch, _, window = args
    expected = TritonKernels().paged_attention(*args)
    seen = torch.zeros(key_pages.shape[0] * key_pages.shape[2], dtype=torch.bool, device=DEVICE)
    for sequence, (query_len, context_len) in enumerate(sequences):
        position = torch.arange(max(0, context_len - query_len - window + 1), context_len, device=DEVICE)
        page = batch.page_tables[sequence][position // cases.PAGE_TOKENS].long()
        seen[page * cases.PAGE_TOKENS + position % cases.PAGE_TOKENS] = True
    unseen = ~seen.view(key_pages.shape[0], 1, -1, 1)
    for pages in (key_pages, value_pages):
        pages.masked_fill_(unseen, float("nan"))

    assert torch.equal(TritonKernels().paged_attention(*args), expected)


@pytest.mark.parametrize("in_features", [100, 1100])
def test_lora_of_a_token_does_not_depend_on_its_batch(in_features):
    """A decode token's result is the same bit for bit alone and among other adapters' tokens."""
    adapters = ((16, 16, 16), (33, 7, 0), (64, 64, 64))
    shapes = {"adapters": adapters, "in_features": in_features, "slice_widths": (72, 24, 24)}
    args = cases.lora_args(DEVICE, torch.bfloat16, 0, segments=((0, 9), (None, 2), (1, 1), (2, 20)), **shapes)
    out, x, lora, site, widths = args
    alone_out, alone_x = out[11:12].clone(), x[11:12].clone()
    alone = replace(lora, work=torch.tensor([[1, 0, 1, scale_bits(1.0)]], dtype=torch.int32, device=DEVICE))

    TritonKernels().add_lora(out, x, lora, site, widths)
    TritonKernels().add_lora(alone_out, alone_x, alone, site, widths)

    assert torch.equal(alone_out, out[11:12])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [7, 5000])
def test_greedy_takes_the_first_of_equals(dtype, vocab):
    """Among equal largest logits, 0.0 and -0.0 included, the first index is chosen, alone and beside random rows."""
    rows = (RowSettings(), RowSettings(), RowSettings(temperature=1.0))
    logits, batch = cases.sampling_args(DEVICE, dtype, 0, rows=rows, vocab=vocab)
    logits[0] = 3.5
    logits[1] = -1.0
    logits[1, vocab // 2 :: 2] = -0.0
    logits[1, vocab // 2 + 1 :: 2] = 0.0
    for all_greedy in (True, False):
        chosen = TritonKernels().sample(logits, replace(batch, all_greedy=all_greedy))
        assert chosen[:2].tolist() == [0, vocab // 2]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-24])
def test_extreme_draws_stay_inside_the_filters(uniform):
    """A draw of 0 gives the first kept token and the largest draw the last one, wherever the sums round to."""
    rows = (
        RowSettings(temperature=1.0, top_k=3),
        RowSettings(temperature=1.0, min_p=0.5),
        RowSettings(temperature=5.0),
    )
    logits, batch = cases.sampling_args(DEVICE, torch.float32, 0, rows=rows, vocab=5000)
    logits[:2] -= 5
    logits[:2, (100, 2500, 4100)] = torch.tensor((9.0, 8.9, 9.1), device=DEVICE)
    batch = replace(batch, uniform=torch.full((3,), uniform, device=DEVICE))

    first, second, unfiltered = TritonKernels().sample(logits, batch).tolist()

    assert first == second == (100 if uniform == 0 else 4100)
    assert 0 <= unfiltered < 5000


def test_top_p_zero_keeps_the_best():
    """top_p 0 leaves the largest logit, not nothing."""
    rows = (RowSettings(temperature=1.0, top_p=0.0),)
    logits, batch = cases.sampling_args(DEVICE, torch.bfloat16, 0, rows=rows, vocab=300)

    chosen = TritonKernels().sample(logits, batch)

    assert torch.equal(chosen, ReferenceKernels().sample(logits, batch))
