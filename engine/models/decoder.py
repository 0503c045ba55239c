"""The decoder of the Llama-like families, written once, with the LoRA and the attention seams in it.

Llama, Mistral, Qwen2 and Qwen3 differ in biases, q/k norms, windows and rotary scaling only. Knows tensors and
kernels; knows no sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex.engine.batch import BatchInputs
from loraplex.engine.end_uses import EndUses
from loraplex.engine.models.config import ModelConfig
from loraplex.engine.models.vocabulary import change_embedded, change_logits
from loraplex.kernels.ops import Kernels, Linear, LoraBatch


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. q, k, v and gate, up are fused along their outputs; q_norm and k_norm are Qwen3's, else None."""

    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear
    post_attention_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """embedding [vocab, hidden]; cos, sin [max_positions, rotary / 2] fp32."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    lm_head: Linear
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of all layers, [layers, num_pages, kv_heads, page_tokens, head_dim]."""

    keys: Tensor
    values: Tensor

    @classmethod
    def allocate(
        cls, config: ModelConfig, num_pages: int, page_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        shape = (config.num_layers, num_pages, config.num_kv_heads, page_tokens, config.head_dim)
        return cls(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))


SITES_PER_LAYER = 4
QKV, OUT, GATE_UP, DOWN = range(SITES_PER_LAYER)  # the order of config.lora_shape


class Decoder:
    """token ids -> hidden states -> logits, all state passed in."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights, kernels: Kernels) -> None:
        self._config = config
        self._weights = weights
        self._kernels = kernels
        self._scale = config.head_dim**-0.5
        query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self._widths = {
            QKV: (query, key, key),
            OUT: (config.hidden_size,),
            GATE_UP: (config.intermediate_size, config.intermediate_size),
            DOWN: (config.hidden_size,),
        }

    def forward(self, inputs: BatchInputs, cache: KVCache) -> Tensor:
        """Logits [rows, vocab] of the tokens in `inputs.sample_rows`; the step's keys and values go to the cache."""
        return self.logits(self.hidden_states(inputs, cache)[inputs.sample_rows], inputs.ends)

    def hidden_states(self, inputs: BatchInputs, cache: KVCache) -> Tensor:
        """[tokens, hidden] after the final norm; the step's keys and values go to the cache."""
        kernels, eps = self._kernels, self._config.rms_norm_eps
        residual = self._embedded(inputs)
        hidden = kernels.rms_norm(residual, self._weights.layers[0].input_norm, eps)
        next_norms = [layer.input_norm for layer in self._weights.layers[1:]] + [self._weights.final_norm]
        for index, (layer, next_norm) in enumerate(zip(self._weights.layers, next_norms, strict=True)):
            attended = self._attention(index, layer, hidden, inputs, cache)
            hidden = kernels.add_rms_norm(attended, residual, layer.post_attention_norm, eps)
            hidden = self._mlp(index, layer, hidden, inputs)
            hidden = kernels.add_rms_norm(hidden, residual, next_norm, eps)
        return hidden

    def logits(self, x: Tensor, ends: EndUses) -> Tensor:
        """[rows, vocab] of x [rows, hidden], with what `ends` has for the head.

        vocab: the base's, or the largest one of an adapter in `ends`.
        """
        logits = self._weights.lm_head(x)
        head = self._config.num_layers * SITES_PER_LAYER
        self._adapt(logits, x, ends.head_lora, head, (logits.shape[1],))
        return change_logits(logits, x, ends.head)

    def _embedded(self, inputs: BatchInputs) -> Tensor:
        """[tokens, hidden]"""
        token_ids, uses, vocab = inputs.token_ids, inputs.ends.embedding, self._config.vocab_size
        embedded = self._weights.embedding[token_ids.clamp(max=vocab - 1) if uses else token_ids]
        change_embedded(embedded, token_ids, uses, vocab)
        return embedded

    def _attention(
        self, index: int, layer: LayerWeights, hidden: Tensor, inputs: BatchInputs, cache: KVCache
    ) -> Tensor:
        config, kernels = self._config, self._kernels
        qkv = self._project(layer.qkv, hidden, inputs, index, QKV)
        query, key, value = (
            part.view(part.shape[0], part.shape[1] // config.head_dim, config.head_dim)
            for part in qkv.split_with_sizes(self._widths[QKV], dim=-1)
        )
        if layer.q_norm is not None and layer.k_norm is not None:
            query = kernels.rms_norm(query, layer.q_norm, config.rms_norm_eps)
            key = kernels.rms_norm(key, layer.k_norm, config.rms_norm_eps)
        kernels.rotary(query, key, self._weights.cos, self._weights.sin, inputs.positions)
        keys, values = cache.keys[index], cache.values[index]
        kernels.write_kv(key, value, keys, values, inputs.attention.slots)
        attended = kernels.paged_attention(
            query, keys, values, inputs.attention, self._scale, config.sliding_windows[index]
        )
        return self._project(layer.o, attended.flatten(-2), inputs, index, OUT)

    def _mlp(self, index: int, layer: LayerWeights, hidden: Tensor, inputs: BatchInputs) -> Tensor:
        gate_up = self._project(layer.gate_up, hidden, inputs, index, GATE_UP)
        return self._project(layer.down, self._kernels.silu_and_mul(gate_up), inputs, index, DOWN)

    def _project(self, linear: Linear, x: Tensor, inputs: BatchInputs, layer: int, site: int) -> Tensor:
        """The base product of a site, plus each row's own adapters."""
        out = linear(x)
        self._adapt(out, x, inputs.lora, layer * SITES_PER_LAYER + site, self._widths[site])
        return out

    def _adapt(
        self, out: Tensor, x: Tensor, passes: tuple[LoraBatch, ...], site: int, slice_widths: tuple[int, ...]
    ) -> None:
        for lora in passes:
            if lora.has_vectors:
                self._kernels.scale_and_shift(out, lora, site)
            if lora.max_rank:
                self._kernels.add_lora(out, x, lora, site, slice_widths)
