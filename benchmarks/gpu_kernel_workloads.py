"""The shapes at which the GPU benchmarks check and time each op, with the bytes and operations it cannot do without."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from kernels import cases
from kernels.cases import Case, RowSettings


@dataclass(frozen=True)
class ModelShape:
    """Widths of a Llama-like model."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int


@dataclass(frozen=True)
class Load:
    """Sizes of the steps: a decode step of some sequences with a context each, a prefill step of four equal prompts."""

    decodes: int
    context: int
    prefill: int


@dataclass(frozen=True)
class Workload:
    """An op at one shape: elements that it must read and write, and floating-point operations where they bound it."""

    case: Case
    elements: int
    flops: int = 0


LLAMA_8B = ModelShape(hidden=4096, heads=32, kv_heads=8, head_dim=128, intermediate=14336, vocab=128_256)
TINY = ModelShape(hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocab=300)
CHECK_LOAD = Load(decodes=6, context=700, prefill=1100)
BENCH_LOAD = Load(decodes=64, context=1024, prefill=8192)
TINY_LOAD = Load(decodes=3, context=40, prefill=24)


def workloads(shape: ModelShape, load: Load) -> list[Workload]:
    """Every op in a decode step and in a prefill step."""
    listed = [entry for tokens in (load.decodes, load.prefill) for entry in _per_token(shape, tokens)]
    return [*listed, *_attention(shape, load), *_lora(shape, load), *_sampling(shape, load)]


def _per_token(shape: ModelShape, tokens: int) -> list[Workload]:
    hidden, wide, head_dim = shape.hidden, shape.intermediate, shape.head_dim
    both_heads = shape.heads + shape.kv_heads
    norm = partial(cases.rms_norm_args, shape=(tokens, hidden))
    add_norm = partial(cases.add_rms_norm_args, tokens=tokens, width=hidden)
    kv = partial(cases.write_kv_args, tokens=tokens, kv_heads=shape.kv_heads, head_dim=head_dim)
    silu = partial(cases.silu_and_mul_args, tokens=tokens, width=wide)
    linear = partial(cases.linear_args, tokens=tokens, widths=(hidden, 2 * wide), bias=False)
    rotary = partial(
        cases.rotary_args,
        tokens=tokens,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=head_dim,
        half_width=head_dim // 2,
    )
    name = f"{tokens} tokens"
    weight = 2 * wide * hidden
    return [
        Workload(Case("rms_norm", name, norm, (), hidden), 2 * tokens * hidden),
        Workload(Case("add_rms_norm", name, add_norm, (1,), hidden), 4 * tokens * hidden),
        Workload(Case("rotary", name, rotary, (0, 1)), 2 * tokens * both_heads * head_dim),
        Workload(Case("write_kv", name, kv, (2, 3)), 4 * tokens * shape.kv_heads * head_dim),
        Workload(Case("silu_and_mul", name, silu), 3 * tokens * wide),
        Workload(
            Case("linear", f"gate_up, {name}", linear, (), hidden),
            weight + tokens * (hidden + 2 * wide),
            2 * tokens * weight,
        ),
    ]


def _attention(shape: ModelShape, load: Load) -> list[Workload]:
    prompt = load.prefill // 4
    batches = {
        f"{load.decodes} decodes at {load.context}": ((1, load.context),) * load.decodes,
        f"1 decode at {4 * load.context}": ((1, 4 * load.context),),
        f"4 prompts of {prompt}": ((prompt, prompt),) * 4,
        f"{load.decodes} decodes at {load.context}, chunk of {prompt}": (
            *(((1, load.context),) * load.decodes),
            (prompt, 2 * prompt),
        ),
    }
    listed = []
    for name, sequences in batches.items():
        build = partial(
            cases.attention_args,
            sequences=sequences,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
        )
        contexts, queries = sum(context for _, context in sequences), sum(query for query, _ in sequences)
        pairs = sum(query * (2 * context - query + 1) // 2 for query, context in sequences)
        elements = 2 * contexts * shape.kv_heads * shape.head_dim + 2 * queries * shape.heads * shape.head_dim
        case = Case("paged_attention", name, build, (), shape.head_dim + load.context)
        listed.append(Workload(case, elements, 4 * pairs * shape.heads * shape.head_dim))
    return listed


def _lora(shape: ModelShape, load: Load) -> list[Workload]:
    kv_width = shape.kv_heads * shape.head_dim
    sites: dict[str, tuple[int, tuple[int, ...]]] = {
        "qkv": (shape.hidden, (shape.heads * shape.head_dim, kv_width, kv_width)),
        "gate_up": (shape.hidden, (shape.intermediate, shape.intermediate)),
        "down": (shape.intermediate, (shape.hidden,)),
    }
    # (adapters, tokens of each): ranks are 16 but for the mixed batch's
    batches = {
        "1 token": ((16,), 1),
        f"{load.decodes} tokens of 1 adapter": ((16,), load.decodes),
        f"{load.decodes} adapters": ((16,) * load.decodes, 1),
        f"{load.decodes} adapters, ranks 8 to 64": (tuple((8, 16, 33, 64)[i % 4] for i in range(load.decodes)), 1),
        f"8 adapters, {load.prefill} tokens": ((16,) * 8, load.prefill // 8),
    }
    listed = []
    for site, (in_features, widths) in sites.items():
        for name, (ranks, tokens_each) in batches.items():
            build = partial(
                cases.lora_args,
                adapters=tuple((rank,) * len(widths) for rank in ranks),
                segments=tuple((adapter, tokens_each) for adapter in range(len(ranks))),
                in_features=in_features,
                slice_widths=widths,
            )
            tokens, total_rank = len(ranks) * tokens_each, sum(ranks)
            weights = total_rank * (len(widths) * in_features + sum(widths))
            elements = weights + tokens * (in_features + 2 * sum(widths))
            case = Case("add_lora", f"{site}, {name}", build, (0,), in_features + 64)
            listed.append(Workload(case, elements, 2 * tokens_each * weights))
    return listed


def _sampling(shape: ModelShape, load: Load) -> list[Workload]:
    settings = {
        "greedy": RowSettings(),
        "temperature": RowSettings(temperature=0.8),
        "top_k and top_p": RowSettings(temperature=0.8, top_k=50, top_p=0.9),
    }
    listed = []
    for name, row in settings.items():
        build = partial(cases.sampling_args, rows=(row,) * load.decodes, vocab=shape.vocab)
        listed.append(Workload(Case("sample", f"{load.decodes} rows, {name}", build), load.decodes * shape.vocab))
    return listed
