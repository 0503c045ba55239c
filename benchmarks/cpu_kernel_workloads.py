"""What `cpu_kernels.py` times: each operation of a decode or a prefill step of SmolLM2-135M, and its least work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from kernels import cases
from kernels.cases import Case, RowSettings

HIDDEN, INTERMEDIATE, VOCAB, LAYERS = 576, 1536, 49_152, 30
HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
KV_WIDTH = KV_HEADS * HEAD_DIM
QKV = (HEADS * HEAD_DIM, KV_WIDTH, KV_WIDTH)
RANK = 16


@dataclass(frozen=True)
class Workload:
    """`elements`: bf16 numbers that must be read or written. `flops`: 0 where they are no bound. `calls`: per step."""

    case: Case
    elements: int
    flops: int = 0
    calls: int = LAYERS


@dataclass(frozen=True)
class Step:
    """`sequences` of `query_len` new tokens each, at a context of `context` tokens, these included."""

    sequences: int
    query_len: int
    context: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.query_len

    @property
    def name(self) -> str:
        return f"decode {self.sequences}" if self.query_len == 1 else f"prefill {self.tokens}"


def workloads(step: Step) -> Iterator[Workload]:
    yield from _elementwise(step)
    yield from _products(step)
    yield _attention(step)
    yield from _lora(step)
    sample = partial(cases.sampling_args, rows=(RowSettings(),) * step.sequences, vocab=VOCAB)
    yield Workload(Case("sample", "greedy", sample), step.sequences * VOCAB, calls=1)


def _elementwise(step: Step) -> Iterator[Workload]:
    tokens = step.tokens
    norm = partial(cases.rms_norm_args, shape=(tokens, HIDDEN))
    yield Workload(Case("rms_norm", "first", norm), 2 * tokens * HIDDEN, calls=1)
    add_norm = partial(cases.add_rms_norm_args, tokens=tokens, width=HIDDEN)
    yield Workload(Case("add_rms_norm", "", add_norm), 4 * tokens * HIDDEN, calls=2 * LAYERS)
    sizes = {"tokens": tokens, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    rotary = partial(cases.rotary_args, heads=HEADS, half_width=HEAD_DIM // 2, **sizes)
    yield Workload(Case("rotary", "", rotary), 2 * tokens * (HEADS + KV_HEADS) * HEAD_DIM)
    yield Workload(Case("write_kv", "", partial(cases.write_kv_args, **sizes)), 4 * tokens * KV_WIDTH)
    silu = partial(cases.silu_and_mul_args, tokens=tokens, width=INTERMEDIATE)
    yield Workload(Case("silu_and_mul", "", silu), 3 * tokens * INTERMEDIATE)


def _products(step: Step) -> Iterator[Workload]:
    """The head's product is needed for the last token of each sequence only."""
    products = {
        "qkv": (HIDDEN, sum(QKV), step.tokens, LAYERS),
        "o": (HEADS * HEAD_DIM, HIDDEN, step.tokens, LAYERS),
        "gate_up": (HIDDEN, 2 * INTERMEDIATE, step.tokens, LAYERS),
        "down": (INTERMEDIATE, HIDDEN, step.tokens, LAYERS),
        "head": (HIDDEN, VOCAB, step.sequences, 1),
    }
    for name, (width_in, width_out, tokens, calls) in products.items():
        args = partial(cases.linear_args, tokens=tokens, widths=(width_in, width_out), bias=False)
        elements = width_in * width_out + tokens * (width_in + width_out)
        yield Workload(Case("linear", name, args), elements, 2 * tokens * width_in * width_out, calls)


def _attention(step: Step) -> Workload:
    args = partial(
        cases.attention_args,
        sequences=((step.query_len, step.context),) * step.sequences,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
    )
    pairs = step.tokens * (2 * step.context - step.query_len + 1) // 2
    elements = 2 * step.sequences * step.context * KV_WIDTH + 2 * step.tokens * HEADS * HEAD_DIM
    case = Case("paged_attention", f"context {step.context}", args)
    return Workload(case, elements, 4 * pairs * HEADS * HEAD_DIM)


def _lora(step: Step) -> Iterator[Workload]:
    """One adapter, 8 and 32 of them, as far as the step has tokens for them, neighbouring tokens sharing one."""
    sites = {
        "qkv": (HIDDEN, QKV),
        "o": (HEADS * HEAD_DIM, (HIDDEN,)),
        "gate_up": (HIDDEN, (INTERMEDIATE,) * 2),
        "down": (INTERMEDIATE, (HIDDEN,)),
    }
    for adapters in (1, 8, 32):
        if adapters > step.tokens:
            continue
        each = step.tokens // adapters
        for site, (width_in, widths) in sites.items():
            args = partial(
                cases.lora_args,
                adapters=((RANK,) * len(widths),) * adapters,
                segments=tuple((adapter, each) for adapter in range(adapters)),
                in_features=width_in,
                slice_widths=widths,
            )
            weights = RANK * (len(widths) * width_in + sum(widths))
            elements = adapters * weights + step.tokens * (width_in + 2 * sum(widths))
            name = f"{site}, {adapters} adapter{'s' * (adapters > 1)}"
            yield Workload(Case("add_lora", name, args), elements, 2 * step.tokens * weights)
