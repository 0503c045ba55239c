"""The shape table that every implementation of `ops.Kernels` is checked against, and the tolerance it is checked with.

Needs torch alone, so that the check on a GPU machine imports it too. `check(kernels, case, device, dtype)` builds the
inputs of a case, runs the op, and compares with the fp64 reference on the CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate, chain, repeat
from typing import Any

import torch
from torch import Tensor

from loraplex.kernels.ops import (
    LONG_WORK_TOKENS,
    MAX_SLICES,
    TABLE_COLUMNS,
    WORK_NUMBERS,
    WORK_TOKENS,
    AttentionBatch,
    Kernels,
    LoraBatch,
    SamplingBatch,
    scale_bits,
)
from loraplex.kernels.quantization import quantize
from loraplex.kernels.reference import ReferenceKernels

PAGE_TOKENS = 16


@dataclass(frozen=True)
class Case:
    """One op with one set of shapes. `build` gives its arguments; `written` are the places of those it changes."""

    op: str
    name: str
    build: Callable[[torch.device, torch.dtype, int], tuple[Any, ...]]
    written: tuple[int, ...] = ()
    reduction_length: int = 1

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


def check(kernels: Kernels, case: Case, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
    """The op's result and the arguments it writes equal the fp64 reference's; its other arguments are untouched."""
    args = case.build(device, dtype, seed)
    read_only = {place: arg for place, arg in enumerate(args) if isinstance(arg, Tensor) and place not in case.written}
    before = {place: arg.clone() for place, arg in read_only.items()}
    actual = run(kernels, case.op, args, case.written)
    for one_actual, one_expected in zip(actual, exact_result(case, dtype, seed), strict=True):
        assert_close(one_actual, one_expected, dtype, case.reduction_length)
    for place, arg in read_only.items():
        assert torch.equal(arg, before[place]), f"{case}: argument {place} was changed"


@cache
def exact_result(case: Case, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """What the fp64 reference gives on the CPU, computed once for all that are compared with it."""
    args = exact(case.build(torch.device("cpu"), dtype, seed))
    return run(ReferenceKernels(), case.op, args, case.written)


def run(kernels: Kernels, op: str, args: tuple[Any, ...], written: tuple[int, ...]) -> list[Tensor]:
    """The op's result, if it has one, then the arguments that it writes."""
    if op == "linear":
        x, weight, bias = args
        return [kernels.linear(weight, bias)(x)]
    if op == "quantized_linear":
        x, weight, bias = args
        return [kernels.quantized_linear(weight, bias)(x)]
    result = getattr(kernels, op)(*args)
    return ([] if result is None else [result]) + [args[place] for place in written]


def exact(value: Any) -> Any:
    """The same arguments on the CPU with every floating tensor in fp64; batches are rebuilt field by field."""
    if isinstance(value, Tensor):
        return value.to("cpu", torch.float64) if value.is_floating_point() else value.cpu()
    if isinstance(value, tuple):
        return tuple(exact(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: exact(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def tolerance(dtype: torch.dtype, reduction_length: int) -> float:
    """Allowed error in units of |expected| + rms(expected).

    Two roundings to dtype, and an fp32 sum's random walk of roundings over reduction_length terms.
    """
    return 2 * torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32).eps * max(reduction_length, 1) ** 0.5


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, reduction_length: int) -> None:
    """actual has dtype, expected's shape, and its values within the tolerance. Integers must be equal."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.is_floating_point():
        torch.testing.assert_close(actual.cpu(), expected.cpu(), rtol=0, atol=0)
        return
    assert actual.dtype == dtype, f"dtype {actual.dtype}, expected {dtype}"
    if expected.numel() == 0:
        return
    limit = tolerance(dtype, reduction_length)
    rms = expected.double().pow(2).mean().sqrt().item()
    torch.testing.assert_close(actual.cpu().double(), expected.cpu().double(), rtol=limit, atol=limit * rms)


class Random:
    """Normal tensors that are the same on every device for one seed."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, generator=self.generator) * scale
        return values.to(self.device, dtype or self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.device)

    def permutation(self, length: int) -> Tensor:
        return torch.randperm(length, generator=self.generator)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator).to(self.device)


# Linear, norms, rotary, KV write, SiLU


def linear_args(
    device: torch.device, dtype: torch.dtype, seed: int, *, tokens: int, widths: tuple[int, int], bias: bool
) -> tuple[Any, ...]:
    """(x, weight, bias): `run` prepares the weight and applies it."""
    random = Random(device, dtype, seed)
    in_features, out_features = widths
    weight = random.normal(out_features, in_features, scale=in_features**-0.5)
    return random.normal(tokens, in_features), weight, random.normal(out_features) if bias else None


def quantized_linear_args(
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    *,
    tokens: int,
    widths: tuple[int, int],
    bias: bool,
    bits: int,
    row_gap: int = 0,
) -> tuple[Any, ...]:
    """(x, quantised weight, bias), x a view with row_gap foreign elements after each row."""
    x, weight, bias_row = linear_args(device, dtype, seed, tokens=tokens, widths=widths, bias=bias)
    x = torch.nn.functional.pad(x, (0, row_gap), value=1e4)[:, : widths[0]]
    return x, quantize(weight, bits), bias_row


def rms_norm_args(
    device: torch.device, dtype: torch.dtype, seed: int, *, shape: tuple[int, ...], row_gap: int = 0
) -> tuple[Any, ...]:
    """(x, weight, eps), x a view with row_gap foreign elements after each row."""
    random = Random(device, dtype, seed)
    x = random.normal(*shape[:-1], shape[-1] + row_gap)[..., : shape[-1]]
    return x, random.normal(shape[-1]), 1e-5


def head_norm_args(device: torch.device, dtype: torch.dtype, seed: int, *, tokens: int) -> tuple[Any, ...]:
    """(x, weight, eps), x being the query heads of one fused projection."""
    random = Random(device, dtype, seed)
    query, _, _ = fused_projection(random, tokens, 3, 2, 64)
    return query, random.normal(64), 1e-5


def add_rms_norm_args(
    device: torch.device, dtype: torch.dtype, seed: int, *, tokens: int, width: int
) -> tuple[Any, ...]:
    """(x, residual, weight, eps)"""
    random = Random(device, dtype, seed)
    return random.normal(tokens, width), random.normal(tokens, width), random.normal(width), 1e-5


def rotary_args(
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    *,
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    half_width: int,
) -> tuple[Any, ...]:
    """(query, key, cos, sin, positions), query and key being slices of one fused projection."""
    random = Random(device, dtype, seed)
    query, key, _ = fused_projection(random, tokens, heads, kv_heads, head_dim)
    angles = random.normal(512, half_width, scale=3.0, dtype=torch.float32)
    return query, key, angles.cos(), angles.sin(), random.integers(512, tokens)


def write_kv_args(
    device: torch.device, dtype: torch.dtype, seed: int, *, tokens: int, kv_heads: int, head_dim: int
) -> tuple[Any, ...]:
    """(key, value, key_pages, value_pages, slots), the slots scattered over the pages without repeat."""
    random = Random(device, dtype, seed)
    _, key, value = fused_projection(random, tokens, kv_heads, kv_heads, head_dim)
    num_pages = tokens // PAGE_TOKENS + 2
    pages = [random.normal(num_pages, kv_heads, PAGE_TOKENS, head_dim) for _ in range(2)]
    slots = random.permutation(num_pages * PAGE_TOKENS)[:tokens].to(device)
    return key, value, *pages, slots


def fused_projection(
    random: Random, tokens: int, heads: int, kv_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as views of one [tokens, (heads + 2 kv_heads) head_dim] tensor."""
    fused = random.normal(tokens, heads + 2 * kv_heads, head_dim)
    query, key, value = fused.split((heads, kv_heads, kv_heads), dim=1)
    return query, key, value


def silu_and_mul_args(
    device: torch.device, dtype: torch.dtype, seed: int, *, tokens: int, width: int
) -> tuple[Any, ...]:
    """(gate_up,), with a few gates far out, where a careless exp overflows."""
    gate_up = Random(device, dtype, seed).normal(tokens, 2 * width, scale=2.0)
    gate_up[::2, :2] = torch.tensor((-200.0, 200.0), dtype=dtype)[:width]
    return (gate_up,)


# Attention


def attention_args(
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    *,
    sequences: tuple[tuple[int, int], ...],
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int | None = None,
    sharpness: float = 1.0,
) -> tuple[Any, ...]:
    """(query, key_pages, value_pages, batch, scale, window); sequences are (new tokens, context length) pairs.

    sharpness: times the usual scale; at 8 a later key often outweighs all before it by many powers of two. Pages lie in
    random order. What the op must not read (page 0, the tail of last pages) holds huge values.
    """
    random = Random(device, dtype, seed)
    query_lens = [query_len for query_len, _ in sequences]
    context_lens = [context_len for _, context_len in sequences]
    query, _, _ = fused_projection(random, sum(query_lens), heads, kv_heads, head_dim)
    num_pages = 1 + sum(-(-context_len // PAGE_TOKENS) for context_len in context_lens)
    pages = [random.normal(num_pages, kv_heads, PAGE_TOKENS, head_dim) for _ in range(2)]
    free_pages = (1 + random.permutation(num_pages - 1)).tolist()
    page_tables = torch.zeros(len(sequences), max(1, num_pages), dtype=torch.int32)
    slots: list[int] = []
    for sequence, (query_len, context_len) in enumerate(sequences):
        own = [free_pages.pop() for _ in range(-(-context_len // PAGE_TOKENS))]
        page_tables[sequence, : len(own)] = torch.tensor(own, dtype=torch.int32)
        own_slots = [page * PAGE_TOKENS + offset for page in own for offset in range(PAGE_TOKENS)]
        slots += own_slots[context_len - query_len : context_len]
        for page_kind in pages:
            page_kind[0] = 1e4
            if context_len % PAGE_TOKENS:
                page_kind[own[-1], :, context_len % PAGE_TOKENS :] = 1e4
    batch = AttentionBatch(
        query_starts=torch.tensor([0, *accumulate(query_lens)], dtype=torch.int32, device=device),
        context_lens=torch.tensor(context_lens, dtype=torch.int32, device=device),
        page_tables=page_tables.to(device),
        slots=torch.tensor(slots, dtype=torch.int64, device=device),
        max_query_len=max(query_lens, default=0),
        max_context_len=max(context_lens, default=0),
    )
    return query, *pages, batch, sharpness * head_dim**-0.5, window


# LoRA


def lora_args(
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    *,
    adapters: tuple[tuple[int, ...], ...],
    segments: tuple[tuple[int | None, int], ...],
    in_features: int,
    slice_widths: tuple[int, ...],
    scales: tuple[float, ...] = (),
    padding_entries: int = 0,
) -> tuple[Any, ...]:
    """(out, x, lora, site, slice_widths).

    adapters: each one's rank for every slice; segments: (adapter or None for the base, tokens) in batch order, those of
    LONG_WORK_TOKENS and more in the list of long work too; scales: of the first segments, 1 of those that follow.
    """
    random = Random(device, dtype, seed)
    tokens = sum(count for _, count in segments)
    pool, table = _lora_pool(random, adapters, in_features, slice_widths)
    short, rest, long_work = _work_lists(segments, scales, padding_entries)
    lora = LoraBatch(
        pool=pool,
        table=table.to(device),
        work=torch.cat((short, rest)).to(device),
        max_rank=max((sum(ranks) for ranks in adapters), default=0),
        long_work=long_work.to(device) if len(long_work) else None,
        num_short=len(short),
    )
    return random.normal(tokens, sum(slice_widths)), random.normal(tokens, in_features), lora, 1, slice_widths


def _lora_pool(
    random: Random, adapters: tuple[tuple[int, ...], ...], in_features: int, slice_widths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Two sites of every adapter, each behind a gap that belongs to nobody; only site 1 holds true weights."""
    table = torch.full((len(adapters), 2, TABLE_COLUMNS), -1, dtype=torch.int64)
    table[:, :, 2 : 2 + MAX_SLICES] = 0
    pieces: list[Tensor] = []
    for adapter, ranks in enumerate(adapters):
        for site in range(2):
            a = random.normal(sum(ranks) * in_features, scale=in_features**-0.5)
            b = random.normal(sum(rank * width for rank, width in zip(ranks, slice_widths, strict=True)), scale=0.5)
            gap = torch.full((8,), 1e4, dtype=a.dtype, device=a.device)
            a_offset = sum(piece.numel() for piece in pieces) + gap.numel()
            table[adapter, site, : 2 + len(ranks)] = torch.tensor((a_offset, a_offset + a.numel(), *ranks))
            pieces += [gap, a, b] if site == 1 else [gap, torch.full_like(a, 1e4), torch.full_like(b, 1e4)]
    return torch.cat(pieces or [random.normal(8)]), table


def vectors_args(
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    *,
    adapters: tuple[tuple[bool, bool], ...],
    segments: tuple[tuple[int | None, int], ...],
    width: int,
    scales: tuple[float, ...] = (),
) -> tuple[Any, ...]:
    """(out, lora, site). adapters: whether each has a gain and whether it has a shift; the rest as in `lora_args`."""
    random = Random(device, dtype, seed)
    table = torch.full((len(adapters), 2, TABLE_COLUMNS), -1, dtype=torch.int64)
    pieces = [torch.full((8,), 1e4, dtype=dtype, device=device)]
    for adapter, has in enumerate(adapters):
        for column, is_there in enumerate(has, 2 + MAX_SLICES):
            if is_there:
                table[adapter, 1, column] = sum(piece.numel() for piece in pieces)
                pieces += [random.normal(width, scale=0.5), pieces[0]]
    short, rest, long_work = _work_lists(segments, scales, 2)
    lora = LoraBatch(
        pool=torch.cat(pieces),
        table=table.to(device),
        work=torch.cat((short, rest)).to(device),
        max_rank=0,
        long_work=long_work.to(device) if len(long_work) else None,
        num_short=len(short),
        has_vectors=True,
    )
    return random.normal(sum(count for _, count in segments), width), lora, 1


def _work_lists(
    segments: tuple[tuple[int | None, int], ...], scales: tuple[float, ...], padding_entries: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Work entries of short segments, padding behind them; those of long segments; these again as long work."""
    short: list[tuple[int, int, int, int]] = []
    rest: list[tuple[int, int, int, int]] = []
    long_work: list[tuple[int, int, int, int]] = []
    first_token = 0
    for (adapter, count), scale in zip(segments, chain(scales, repeat(1.0))):  # noqa: B905 - repeat has no end
        bits = scale_bits(scale)
        is_long = count >= LONG_WORK_TOKENS
        if adapter is not None:
            (rest if is_long else short).extend(_entries(adapter, first_token, count, bits, WORK_TOKENS))
        if adapter is not None and is_long:
            long_work.extend(_entries(adapter, first_token, count, bits, LONG_WORK_TOKENS))
        first_token += count
    short += [(0, 0, 0, 0)] * padding_entries
    return _entry_tensor(short), _entry_tensor(rest), _entry_tensor(long_work)


def _entries(adapter: int, first_token: int, count: int, bits: int, most: int) -> list[tuple[int, int, int, int]]:
    return [(adapter, first_token + done, min(most, count - done), bits) for done in range(0, count, most)]


def _entry_tensor(entries: list[tuple[int, int, int, int]]) -> Tensor:
    return torch.tensor(entries, dtype=torch.int32).view(-1, WORK_NUMBERS)


# Sampling


@dataclass(frozen=True)
class RowSettings:
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def sampling_args(
    device: torch.device, dtype: torch.dtype, seed: int, *, rows: tuple[RowSettings, ...], vocab: int, levels: int = 0
) -> tuple[Any, ...]:
    """(logits, batch). levels > 0 rounds logits to that many values per unit, which makes ties."""
    random = Random(device, dtype, seed)
    logits = random.normal(len(rows), vocab, scale=2.0)
    if levels:
        logits = (logits * levels).round() / levels
    batch = SamplingBatch(
        temperature=torch.tensor([row.temperature for row in rows], device=device),
        top_k=torch.tensor([row.top_k for row in rows], dtype=torch.int32, device=device),
        top_p=torch.tensor([row.top_p for row in rows], device=device),
        min_p=torch.tensor([row.min_p for row in rows], device=device),
        uniform=random.uniform(len(rows)),
        all_greedy=all(row.temperature == 0 for row in rows),
    )
    return logits, batch


# The table


def _simple_cases() -> list[Case]:
    cases: list[Case] = []
    for tokens in (0, 1, 7, 33):
        norm = partial(rms_norm_args, shape=(tokens, 576))
        cases += [
            Case("linear", f"{tokens}", partial(linear_args, tokens=tokens, widths=(96, 80), bias=False), (), 96),
            Case("linear", f"{tokens}-bias", partial(linear_args, tokens=tokens, widths=(65, 33), bias=True), (), 65),
            Case("rms_norm", f"{tokens}", norm, (), 576),
            Case("rms_norm", f"{tokens}-strided", partial(norm, shape=(tokens, 64), row_gap=24), (), 64),
            Case("rms_norm", f"{tokens}-gaps", partial(norm, shape=(tokens, 3, 40), row_gap=8), (), 40),
            Case("rms_norm", f"{tokens}-heads", partial(head_norm_args, tokens=tokens), (), 64),
            Case("add_rms_norm", f"{tokens}", partial(add_rms_norm_args, tokens=tokens, width=577), (1,), 577),
            Case("silu_and_mul", f"{tokens}", partial(silu_and_mul_args, tokens=tokens, width=1536), (), 1),
            Case("silu_and_mul", f"{tokens}-odd", partial(silu_and_mul_args, tokens=tokens, width=37), (), 1),
            Case("write_kv", f"{tokens}", partial(write_kv_args, tokens=tokens, kv_heads=3, head_dim=64), (2, 3)),
        ]
        rotary = partial(rotary_args, tokens=tokens, heads=9, kv_heads=3)
        cases += [
            Case("rotary", f"{tokens}-{name}", partial(rotary, head_dim=head_dim, half_width=half_width), (0, 1))
            for name, head_dim, half_width in (("64", 64, 32), ("128", 128, 64), ("partial", 32, 8))
        ]
    return cases


def _quantized_cases() -> list[Case]:
    shapes = {"whole": ((192, 144), False, 0), "ragged": ((65, 33), True, 0), "strided": ((128, 100), True, 24)}
    return [
        Case(
            "quantized_linear",
            f"int{bits}-{tokens}-{name}",
            partial(quantized_linear_args, tokens=tokens, widths=widths, bias=bias, bits=bits, row_gap=gap),
            (),
            # the sum over codes and the minimum's share cancel, so that rounding is that of the larger of the two
            4 * widths[0],
        )
        for bits in (8, 4)
        for tokens in (0, 1, 2, 3, 4, 5, 33, 140)
        for name, (widths, bias, gap) in shapes.items()
    ]


def _attention_cases() -> list[Case]:
    sequences = {
        "none": (),
        "first-token": ((1, 1),),
        "page-borders": ((1, 15), (1, 16), (1, 17), (1, 32), (1, 33)),
        "prefill": ((37, 37),),
        "chunk": ((16, 48), (5, 21)),
        "mixed": ((1, 40), (19, 19), (1, 1), (0, 7), (33, 97), (1, 65)),
        "long": ((1, 700), (150, 300)),
        "long-decodes": ((1, 700), (1, 1), (0, 7), (1, 129), (1, 640), (1, 256)),
    }
    shapes = {"gqa1": (2, 2, 32), "gqa3": (9, 3, 64), "gqa4": (4, 1, 128), "gqa2": (4, 2, 80)}
    cases: list[Case] = []
    for shape_name, (heads, kv_heads, head_dim) in shapes.items():
        for batch_name, batch in sequences.items():
            build = partial(attention_args, sequences=batch, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
            for window in (None, 1, 20, *((300,) if "long" in batch_name else ())):
                name = f"{shape_name}-{batch_name}" + ("" if window is None else f"-window{window}")
                longest = max((context_len for _, context_len in batch), default=1)
                cases.append(Case("paged_attention", name, partial(build, window=window), (), head_dim + longest))
        sharp = partial(
            attention_args, sequences=((1, 700), (150, 300)), heads=heads, kv_heads=kv_heads, sharpness=16.0
        )
        name = f"{shape_name}-sharp"
        cases.append(
            Case("paged_attention", name, partial(sharp, head_dim=head_dim), (), 32 * (head_dim + 700))
        )  # scores are in exponents
    return cases


def _lora_cases() -> list[Case]:
    one = ((16, 16, 16),)
    mixed = ((1, 1, 1), (8, 0, 16), (16, 16, 16), (33, 7, 0), (64, 64, 64), (0, 0, 0))
    widths, single = (72, 24, 24), (80,)
    shapes: dict[str, tuple[tuple[tuple[int, ...], ...], tuple[tuple[int | None, int], ...], tuple[int, ...]]] = {
        "no-tokens": (one, (), widths),
        "base-only": (one, ((None, 5),), widths),
        "one-token": (one, ((0, 1),), widths),
        "one-adapter": (one, ((0, 50),), widths),
        "decode-distinct": (mixed, tuple((row, 1) for row in range(6)), widths),
        "base-between": (mixed, ((None, 3), (2, 2), (None, 1), (3, 17), (4, 1), (None, 2), (1, 40), (None, 1)), widths),
        "one-slice": (
            tuple((rank,) for rank in (1, 8, 16, 33, 64)),
            tuple((row, 1 + 4 * row) for row in range(5)),
            single,
        ),
        "two-slices": (((4, 0), (0, 5), (128, 64)), ((0, 9), (2, 16), (1, 3), (0, 1)), (48, 56)),
        "long-runs": (mixed, ((0, 130), (None, 3), (2, 5), (4, 144), (1, 1), (3, 128)), widths),
        "only-long": (((16,), (3,)), ((1, 300),), single),
        "same-adapter-apart": (mixed, ((2, 1), (4, 1), (2, 1), (None, 1), (2, 3)), widths),
    }
    cases: list[Case] = []
    for name, (adapters, segments, slice_widths) in shapes.items():
        build = partial(lora_args, adapters=adapters, segments=segments, slice_widths=slice_widths)
        for in_features in (96, 571):
            case = partial(build, in_features=in_features, padding_entries=3)
            cases.append(Case("add_lora", f"{name}-in{in_features}", case, (0,), in_features + 64))
    scaled = partial(
        lora_args,
        adapters=mixed,
        segments=((2, 5), (4, 1), (None, 2), (3, 140), (1, 20)),
        scales=(0.7, -1.5, 1.0, 0.25),
        slice_widths=widths,
        in_features=96,
    )
    cases.append(Case("add_lora", "scaled-in96", scaled, (0,), 96 + 64))
    return cases


def _vectors_cases() -> list[Case]:
    all_kinds = ((True, True), (True, False), (False, True), (False, False))
    segments: dict[str, tuple[tuple[int | None, int], ...]] = {
        "no-tokens": (),
        "base-only": ((None, 3),),
        "decode": ((0, 1), (1, 1), (2, 1), (3, 1), (None, 1), (0, 1)),
        "mixed": ((None, 2), (0, 37), (2, 1), (None, 1), (1, 130), (3, 2)),
    }
    return [
        Case("scale_and_shift", f"{name}-{width}", partial(build, width=width), (0,))
        for name, runs in segments.items()
        for build in (partial(vectors_args, adapters=all_kinds, segments=runs, scales=(1.0, 0.5, -2.0)),)
        for width in (64, 577)
    ]


def _sampling_cases() -> list[Case]:
    greedy = RowSettings()
    random = RowSettings(temperature=0.8)
    filters = (
        RowSettings(temperature=1.0, top_k=1),
        RowSettings(temperature=0.7, top_k=20),
        RowSettings(temperature=1.3, top_p=0.9),
        RowSettings(temperature=1.0, top_p=0.3),
        RowSettings(temperature=1.0, min_p=0.1),
        RowSettings(temperature=0.9, top_k=50, top_p=0.8, min_p=0.02),
        RowSettings(temperature=2.0, top_k=100_000, top_p=0.999, min_p=0.001),
    )
    rows = {
        "none": (),
        "greedy": (greedy,) * 5,
        "random": (random,) * 9,
        "filters": filters,
        "mixed": (greedy, *filters, random, greedy, *filters),
    }
    cases: list[Case] = []
    for name, settings in rows.items():
        for vocab, levels in ((7, 0), (1000, 0), (1003, 2), (49_152, 8)):
            build = partial(sampling_args, rows=settings, vocab=vocab, levels=levels)
            cases.append(Case("sample", f"{name}-vocab{vocab}" + ("-ties" if levels else ""), build))
    return cases


CASES: tuple[Case, ...] = (
    *_simple_cases(),
    *_attention_cases(),
    *_lora_cases(),
    *_vectors_cases(),
    *_sampling_cases(),
)

QUANTIZED_CASES: tuple[Case, ...] = tuple(_quantized_cases())
"""For `quantization.QuantizedKernels`."""
