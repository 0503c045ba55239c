"""The reference against independent formulas: it is what every other implementation is compared with."""

import itertools
import math

import pytest
import torch
from kernels.cases import CASES, Case, exact, run
from torch.nn import functional

from loraplex.kernels.ops import MAX_SLICES, SamplingBatch
from loraplex.kernels.reference import ReferenceKernels

CPU = torch.device("cpu")
KERNELS = ReferenceKernels()


def cases_of(op: str) -> list[Case]:
    return [case for case in CASES if case.op == op and "vocab49152" not in case.name]


def fp64(case: Case):
    return exact(case.build(CPU, torch.float32, 0))


@pytest.mark.parametrize("case", cases_of("paged_attention"), ids=str)
def test_attention_equals_torch_over_gathered_keys(case):
    """Over each sequence's keys in a row, with the mask written out, torch's own attention gives the same."""
    query, key_pages, value_pages, batch, scale, window = fp64(case)
    page_tokens = key_pages.shape[2]

    out = KERNELS.paged_attention(query, key_pages, value_pages, batch, scale, window)

    for sequence, context_len in enumerate(batch.context_lens.tolist()):
        tokens = range(*batch.query_starts[sequence : sequence + 2].tolist())
        pages = batch.page_tables[sequence].tolist()
        keys, values = (
            torch.stack([kind[pages[p // page_tokens], :, p % page_tokens] for p in range(context_len)], dim=1)
            for kind in (key_pages, value_pages)
        )
        for index, token in enumerate(tokens):
            position = context_len - len(tokens) + index
            seen = slice(0 if window is None else max(0, position - window + 1), position + 1)
            expected = functional.scaled_dot_product_attention(
                query[token, :, None], keys[:, seen], values[:, seen], scale=scale, enable_gqa=True
            )
            torch.testing.assert_close(out[token], expected[:, 0])


@pytest.mark.parametrize("case", cases_of("add_lora"), ids=str)
def test_lora_adds_the_dense_delta_of_each_token(case):
    """A token's output grows by x (A^T B), the dense matrix of its adapter, and a base token's not at all."""
    out, x, lora, site, slice_widths = fp64(case)
    expected = out.clone()
    scales = lora.work[:, 3].view(torch.float32).tolist()
    for (row, first, count, _), scale in zip(lora.work.tolist(), scales, strict=True):
        a_offset, b_offset, *ranks = lora.table[row, site, : 2 + MAX_SLICES].tolist()
        for rank, width, end in zip(ranks, slice_widths, itertools.accumulate(slice_widths), strict=False):
            a = lora.pool[a_offset:][: rank * x.shape[1]].reshape(rank, -1) if rank else x.new_zeros(0, x.shape[1])
            b = lora.pool[b_offset:][: rank * width].reshape(rank, width)
            expected[first : first + count, end - width : end] += scale * x[first : first + count] @ (a.T @ b)
            a_offset, b_offset = a_offset + a.numel(), b_offset + b.numel()

    KERNELS.add_lora(out, x, lora, site, slice_widths)

    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("case", cases_of("scale_and_shift"), ids=str)
def test_vectors_scale_and_shift_their_tokens(case):
    """A token's output y becomes y + scale (y gain + shift), with what its adapter has; others keep theirs."""
    out, lora, site = fp64(case)
    expected = out.clone()
    scales = lora.work[:, 3].view(torch.float32).tolist()
    for (row, first, count, _), scale in zip(lora.work.tolist(), scales, strict=True):
        gain_at, shift_at = lora.table[row, site, 2 + MAX_SLICES :].tolist()
        for token in range(first, first + count):
            gain = lora.pool[gain_at:][: out.shape[1]] if gain_at >= 0 else torch.zeros(out.shape[1])
            shift = lora.pool[shift_at:][: out.shape[1]] if shift_at >= 0 else torch.zeros(out.shape[1])
            expected[token] = out[token] * (1 + scale * gain) + scale * shift

    KERNELS.scale_and_shift(out, lora, site)

    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("case", cases_of("rms_norm"), ids=str)
def test_norm_equals_torch(case):
    """RMS norm is torch's, and its result is contiguous whatever the strides of its input."""
    x, weight, eps = fp64(case)
    out = KERNELS.rms_norm(x, weight, eps)
    torch.testing.assert_close(out, functional.rms_norm(x, weight.shape, weight, eps))
    assert out.is_contiguous()


@pytest.mark.parametrize("case", cases_of("rotary"), ids=str)
def test_rotary_turns_complex_numbers(case):
    """Rotation multiplies the complex numbers made of the two halves by cos + i sin, and leaves the rest alone."""
    query, key, cos, sin, positions = fp64(case)
    half = cos.shape[1]
    turns = torch.complex(cos, sin)[positions, None]
    before = [heads.clone() for heads in (query, key)]

    KERNELS.rotary(query, key, cos, sin, positions)

    for heads, old in zip((query, key), before, strict=True):
        turned = torch.complex(old[..., :half].contiguous(), old[..., half : 2 * half].contiguous()) * turns
        torch.testing.assert_close(heads, torch.cat((turned.real, turned.imag, old[..., 2 * half :]), -1))


@pytest.mark.parametrize("case", cases_of("write_kv"), ids=str)
def test_written_keys_and_values_are_read_back_by_slot(case):
    """Each token's key and value stand at its slot; all other slots keep what they held."""
    args = fp64(case)
    key, value, key_pages, value_pages, slots = args
    old = [pages.clone() for pages in (key_pages, value_pages)]

    run(KERNELS, "write_kv", args, ())

    for new, pages, before in zip((key, value), (key_pages, value_pages), old, strict=True):
        by_slot, before_by_slot = (kind.transpose(1, 2).flatten(0, 1) for kind in (pages, before))
        before_by_slot = before_by_slot.index_copy(0, slots, new)
        assert torch.equal(by_slot, before_by_slot)


def test_silu_survives_far_gates():
    """A gate of -200 gives 0 and one of 200 passes the value, without overflow."""
    out = KERNELS.silu_and_mul(torch.tensor([[-200.0, 200.0, 3.0, 3.0]]))
    torch.testing.assert_close(out, torch.tensor([[0.0, 600.0]]))


def sampled_shares(kernels, logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, draws=4000):
    """The share of each token over a uniform grid of draws."""
    batch = SamplingBatch(
        temperature=torch.full((draws,), temperature),
        top_k=torch.full((draws,), top_k, dtype=torch.int32),
        top_p=torch.full((draws,), top_p),
        min_p=torch.full((draws,), min_p),
        uniform=(torch.arange(draws) + 0.5) / draws,
        all_greedy=False,
    )
    ids = kernels.sample(logits.expand(draws, -1).contiguous(), batch)
    assert torch.equal(ids, ids.sort().values), "a larger draw never gives an earlier token"
    return ids.bincount(minlength=len(logits)) / draws


LOGITS = torch.tensor([0.4, 0.1, 0.2, 0.05, 0.2, 0.05]).log()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, (0, 1, 2, 3, 4, 5)),
        ({"temperature": 0.5}, (0, 1, 2, 3, 4, 5)),
        ({"top_k": 1}, (0,)),
        ({"top_k": 2}, (0, 2, 4)),  # the tie at the border is kept whole
        ({"top_k": 4}, (0, 1, 2, 4)),
        ({"top_p": 0.39}, (0,)),
        ({"top_p": 0.41}, (0, 2, 4)),
        ({"top_p": 0.85}, (0, 1, 2, 4)),
        ({"min_p": 0.3}, (0, 2, 4)),
        ({"top_k": 4, "top_p": 0.5}, (0, 2, 4)),
        ({"top_k": 1, "top_p": 0.1, "min_p": 1.0}, (0,)),
        ({"top_p": 0.0}, (0,)),
    ],
)
def test_draws_follow_the_filtered_distribution(settings, kept):
    """Over a grid of draws each kept token comes as often as its renormalised probability says, the others never."""
    weights = torch.zeros(len(LOGITS))
    weights[list(kept)] = (LOGITS[list(kept)] / settings.get("temperature", 1.0)).exp()

    shares = sampled_shares(KERNELS, LOGITS, **settings)

    torch.testing.assert_close(shares, weights / weights.sum(), rtol=0, atol=1 / 2000)


def test_greedy_takes_the_first_of_equal_logits():
    """Temperature 0 gives the first index of the largest logit, beside sampled rows too."""
    logits = torch.tensor([[0.0, 2.0, 2.0], [-math.inf, -math.inf, 1.0]])
    temperature = torch.tensor([0.0, 1.0])
    zeros, ones = torch.zeros(2), torch.ones(2)
    batch = SamplingBatch(temperature, torch.zeros(2, dtype=torch.int32), ones, zeros, zeros, False)
    assert KERNELS.sample(logits, batch).tolist() == [1, 2]
