"""The target table: what is divided by what, what the ratio must be, and the verdict on measured figures.

A figure's name is `<measurement>.<figure>`; bench_peers.py says what each measurement runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["pass", "MISS", "not measured", "failed"]


@dataclass(frozen=True)
class Target:
    """`figure`, divided by `against` if there is one, is at least (or at most) `bound`."""

    key: str
    work: str
    peer: str
    figure: str
    against: str | None
    bound: float
    at_most: bool = False
    unit: str = "x"

    @property
    def measurements(self) -> set[str]:
        """What has to be measured for this row."""
        return {name.split(".")[0] for name in (self.figure, self.against) if name}

    @property
    def bound_text(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.value_text(self.bound)}"

    def value_text(self, value: float) -> str:
        return {"x": f"{value:.2f} x", "ms": f"{value:.1f} ms", "share": f"{value:.1%}"}[self.unit]


@dataclass(frozen=True)
class Row:
    """A target with what was measured. `value` is None unless the verdict is pass or MISS; `why` explains a failure."""

    target: Target
    value: float | None
    verdict: Verdict
    why: str = ""


BASE_32, MIXED_32 = "decode_16_128.c32", "decode_64_64.c32"
MIX = f"{MIXED_32}.8_adapters.output_tok_s"
LORAPLEX, VLLM_OFF, VLLM_ON = "Loraplex, base only", "vLLM CPU, LoRA off", "vLLM CPU, LoRA on"

TARGETS = (
    Target(
        "offline_base", "offline, 32 in flight, 16 in / 128 out, base", VLLM_OFF,
        f"loraplex.{BASE_32}.base.output_tok_s", f"vllm.{BASE_32}.base.output_tok_s", 1.10,
    ),
    Target(
        "offline_mixed_vllm", "offline, 32 in flight, 64 in / 64 out, 8 adapters mixed", VLLM_ON,
        f"loraplex.{MIX}", f"vllm_lora.{MIX}", 8,
    ),
    Target(
        "offline_mixed_peft", "the same", "Transformers + PEFT mixed batch", f"loraplex.{MIX}", f"peft.{MIX}", 5,
    ),
    Target(
        "decode_8", "offline decode, 8 adapters mixed", LORAPLEX,
        f"loraplex.{BASE_32}.8_adapters.decode_tok_s_ratio", None, 0.85,
    ),
    Target(
        "decode_32", "offline decode, 32 distinct adapters in the batch", LORAPLEX,
        f"loraplex.{BASE_32}.32_adapters.decode_tok_s_ratio", None, 0.70,
    ),
    Target(
        "prefill_base", "offline prefill, 32 x 512 in, base", VLLM_OFF,
        "loraplex.prefill.base.prompt_tok_s", "vllm.prefill.base.prompt_tok_s", 1.10,
    ),
    Target(
        "prefill_8", "offline prefill, 32 x 512 in, 8 adapters", LORAPLEX,
        "loraplex.prefill.8_adapters.prompt_tok_s_ratio", None, 0.85,
    ),
    Target(
        "context_2048", "decode at context 2,048, 16 in flight", VLLM_OFF,
        "loraplex.context_2048.base.decode_tok_s", "vllm.context_2048.base.decode_tok_s", 1.0,
    ),
    Target(
        "http_base", "HTTP, concurrency 32, 64 in / 64 out, base", VLLM_OFF,
        "loraplex_http.c32.base.output_tok_s", "vllm_http.c32.base.output_tok_s", 1.5,
    ),
    Target(
        "http_mixed", "HTTP, concurrency 32, 64 in / 64 out, 8 adapters", VLLM_ON,
        "loraplex_http.c32.8_adapters.output_tok_s", "vllm_http_lora.c32.8_adapters.output_tok_s", 6,
    ),
    Target(
        "http_one_tpot", "HTTP, one stream, TPOT", VLLM_OFF,
        "loraplex_http.c1.base.tpot_ms_p50", "vllm_http.c1.base.tpot_ms_p50", 0.7, at_most=True,
    ),
    Target(
        "http_one_ttft", "HTTP, one stream, TTFT", VLLM_OFF,
        "loraplex_http.c1.base.ttft_ms_p50", "vllm_http.c1.base.ttft_ms_p50", 1.0, at_most=True,
    ),
    Target(
        "http_one_adapter", "HTTP, one stream with an adapter, TPOT", LORAPLEX,
        "loraplex_http.c1.1_adapter.tpot_ms_p50", "loraplex_http.c1.base.tpot_ms_p50", 1.10, at_most=True,
    ),
    Target(
        "lora_enabled", "base-only traffic, adapters resident", "Loraplex that never loaded an adapter",
        "loraplex.resident.with_adapters.decode_tok_s_ratio", None, 0.99,
    ),
    Target(
        "zipf", "1,000 registered adapters, Zipf(1.0), device pool for 64, concurrency 32", "Loraplex with 8 adapters",
        "scale.zipf_1000_vs_8", None, 0.80,
    ),
    Target(
        "cold", "a cold adapter's first request, TTFT p50", "the same request warm, more",
        "scale.cold_ttft_extra_ms", None, 50, at_most=True, unit="ms",
    ),
    Target(
        "loading", "20 adapters loading while 16 streams decode, p99 inter-token latency", "the same undisturbed",
        "scale.loading_p99_itl_ratio", None, 1.10, at_most=True,
    ),
    Target(
        "rank_memory", "memory of a rank-8 adapter on the device", "rank-16",
        "scale.rank8_memory_ratio", None, 0.5, at_most=True,
    ),
    Target(
        "kv_waste", "KV waste, mixed lengths", "allocated KV bytes", "scale.kv_waste", None, 0.04, at_most=True,
        unit="share",
    ),
)  # fmt: skip


def judge(targets: Sequence[Target], figures: Mapping[str, float], failures: Mapping[str, str]) -> list[Row]:
    """A row per target. failures: why a measurement gave no figures, by its name; such a row is never a pass."""
    return [_judge(target, figures, failures) for target in targets]


def _judge(target: Target, figures: Mapping[str, float], failures: Mapping[str, str]) -> Row:
    failed = [f"{name}: {failures[name]}" for name in sorted(target.measurements) if name in failures]
    if failed:
        return Row(target, None, "failed", "; ".join(failed))
    value = figures.get(target.figure)
    if value is not None and target.against is not None:
        other = figures.get(target.against)
        value = value / other if other else None
    if value is None:
        return Row(target, None, "not measured")
    within = round(value, 3) <= target.bound if target.at_most else round(value, 3) >= target.bound
    return Row(target, value, "pass" if within else "MISS")
