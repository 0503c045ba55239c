"""What the layers agree on about adapters: where a base model takes LoRA, and which modules an adapter touches.

Knows no tensor library, no database and no file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class LoraSlice:
    """One linear module of a layer, for instance `self_attn.q_proj`."""

    module: str
    out_features: int


@dataclass(frozen=True, slots=True)
class LoraSite:
    """Linear modules of a layer that share one input and are computed as one fused projection."""

    name: str
    in_features: int
    slices: tuple[LoraSlice, ...]


@dataclass(frozen=True, slots=True)
class BaseShape:
    """All that an adapter must fit: the layers of a base model and their sites.

    Site s of layer l has the index l * len(sites) + s wherever sites are numbered. `architecture` and `vocab_size`
    take part in the digest only.
    """

    architecture: str
    vocab_size: int
    num_layers: int
    sites: tuple[LoraSite, ...]

    @property
    def num_sites(self) -> int:
        return self.num_layers * len(self.sites)

    @property
    def digest(self) -> str:
        """SHA-256 of the shape: two bases with the same digest accept the same adapters."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def modules(self) -> dict[str, tuple[int, int]]:
        """Full module name, `model.layers.0.self_attn.q_proj` -> (in_features, out_features)."""
        return {
            f"model.layers.{layer}.{part.module}": (site.in_features, part.out_features)
            for layer in range(self.num_layers)
            for site in self.sites
            for part in site.slices
        }


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """LoRA of one module: y += scaling * x A^T B^T, A [rank, in_features], B [out_features, rank]."""

    rank: int
    scaling: float


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """The normalised configuration of an adapter: every pattern resolved, module by module.

    modules: full module name (`model.layers.0.self_attn.q_proj`) -> its rank and scaling. The tensors of a module are
    named `base_model.model.<module>.lora_A.weight` and `.lora_B.weight` in the weights file.
    """

    modules: Mapping[str, ModuleSpec]

    @property
    def max_rank(self) -> int:
        return max(spec.rank for spec in self.modules.values())

    def to_json(self) -> bytes:
        """Canonical bytes: equal specs give equal bytes. They are part of an adapter version's digest."""
        modules = {name: [spec.rank, spec.scaling] for name, spec in self.modules.items()}
        return json.dumps({"format": 1, "modules": modules}, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> AdapterSpec:
        modules = json.loads(data)["modules"]
        return cls({name: ModuleSpec(int(rank), float(scaling)) for name, (rank, scaling) in modules.items()})


_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether it has the form of a SHA-256: nothing else is looked up, or becomes part of a path."""
    return _DIGEST.fullmatch(text) is not None


def received_digest(sha256_of: Mapping[str, str]) -> str:
    """One digest over files as they came in: file name -> SHA-256."""
    lines = "".join(f"{name} {sha256_of[name]}\n" for name in sorted(sha256_of))
    return hashlib.sha256(lines.encode()).hexdigest()


def adapter_digest(spec: AdapterSpec, weights_sha256: str) -> str:
    """The name of an adapter version: SHA-256 over its normalised configuration and its weights, domain-tagged."""
    tagged = b"loraplex adapter 1\0" + spec.to_json() + b"\0" + weights_sha256.encode()
    return hashlib.sha256(tagged).hexdigest()
