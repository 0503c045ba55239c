"""What the layers agree on about adapters: where a base model takes them, and what an adapter does to which module.

Knows no tensor library, no database and no file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field, fields
from typing import Any, Literal, get_args

from loraplex.adapters.errors import AdapterUnavailable

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"

MATRIX_ENDS = ("weight", "base_layer.weight", "token_adapter.base_layer.weight")
"""What follows the name of the embedding or the head in the names of its matrix, the adapter's own or the base's."""

ROW_ENDS = ("token_adapter.trainable_tokens_delta", "trainable_tokens_delta")
"""And in those of rows of it."""

Form = Literal["lora", "block_lora", "adalora", "loha", "lokr", "vera", "miss", "ia3", "ia3_in", "beft"]
"""How a weights file holds what is done to a module; `factors` knows what each of them means."""

Part = Literal["lora_bias", "bias", "magnitude"]
"""What a module may have beside its A and B. lora_bias: a bias of B; bias: replaces that of the base; magnitude:
DoRA's, the length that every row of the base's weight plus B A is brought to."""


_LATER = "this adapter version is of a kind that only a later release serves; update the server"


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

    Site s of layer l has the index l * len(sites) + s wherever sites are numbered, and the output head the next one.
    `architecture` takes part in the digest only.
    """

    architecture: str
    vocab_size: int
    num_layers: int
    sites: tuple[LoraSite, ...]

    @property
    def num_sites(self) -> int:
        """Of the layers: the head's index."""
        return self.num_layers * len(self.sites)

    @property
    def hidden_size(self) -> int:
        """What an embedding is wide, and so what the first site of a layer takes in."""
        return self.sites[0].in_features

    @property
    def head(self) -> LoraSite:
        return LoraSite(HEAD, self.hidden_size, (LoraSlice(HEAD, self.vocab_size),))

    @property
    def digest(self) -> str:
        """SHA-256 of the shape: two bases with the same digest accept the same adapters."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def numbered_sites(self) -> Iterator[tuple[LoraSite, tuple[str, ...]]]:
        """Every site in the order of their indices, the head's last, with the full names of its modules."""
        for layer in range(self.num_layers):
            for site in self.sites:
                yield site, tuple(f"model.layers.{layer}.{part.module}" for part in site.slices)
        yield self.head, (HEAD,)

    def modules(self) -> dict[str, tuple[int, int]]:
        """Of the layers: full module name, `model.layers.0.self_attn.q_proj` -> (in_features, out_features)."""
        return {
            f"model.layers.{layer}.{part.module}": (site.in_features, part.out_features)
            for layer in range(self.num_layers)
            for site in self.sites
            for part in site.slices
        }


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """What is done to one module: y += scaling * x A^T B^T, A [rank, in_features], B [out_features, rank], and `parts`.

    rank 0: there are no A and B.
    """

    rank: int
    scaling: float
    form: Form = "lora"
    parts: frozenset[Part] = frozenset()

    @property
    def does_something(self) -> bool:
        return self.rank > 0 or bool(self.parts) or self.form in ("ia3", "ia3_in", "beft")

    def to_list(self) -> list[Any]:
        is_plain = self.form == "lora" and not self.parts
        return [self.rank, self.scaling] if is_plain else [self.rank, self.scaling, self.form, sorted(self.parts)]

    @classmethod
    def from_list(cls, values: list[Any]) -> ModuleSpec:
        rank, scaling, *rest = values
        form: Form = rest[0] if rest else "lora"
        parts = rest[1] if rest else []
        if form not in get_args(Form) or not frozenset(parts) <= frozenset(get_args(Part)):
            raise AdapterUnavailable(_LATER)
        return cls(int(rank), float(scaling), form, frozenset(parts))


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that an adapter's tokenizer has and the base's has not. The flags are those of the tokenizers library."""

    id: int
    content: str
    special: bool = False
    normalized: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """The normalised configuration of an adapter: every pattern resolved, module by module.

    modules            full module name (`model.layers.0.self_attn.q_proj`, EMBEDDING, HEAD) -> what is done to it. The
                       tensors of a module are named `base_model.model.<module>.<...>` in the weights file.
    replaced           of EMBEDDING and HEAD those whose whole matrix is the adapter's own
    token_rows         of EMBEDDING and HEAD -> tokens whose rows are the adapter's own, in the order of its tensor
    copies             of EMBEDDING and HEAD those that the file repeats as they are in the base
    invocation_tokens  where they stand last in a prompt the adapter begins to act; none: from the start
    vocab_size         how many tokens its embedding and its head know, if not as many as the base's. The rows of those
                       beyond the base's are the adapter's own.
    added_tokens       by rising id
    special_tokens     of `bos_token`, `eos_token`, `unk_token` those that are others than the base's
    """

    modules: Mapping[str, ModuleSpec]
    replaced: frozenset[str] = frozenset()
    token_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    copies: frozenset[str] = frozenset()
    invocation_tokens: tuple[int, ...] = ()
    vocab_size: int | None = None
    added_tokens: tuple[AddedToken, ...] = ()
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_tokenizer(self) -> bool:
        """Whether its text becomes other tokens than the base's does, or the other way round."""
        return bool(self.vocab_size or self.added_tokens or self.special_tokens)

    @property
    def max_rank(self) -> int:
        return max((spec.rank for spec in self.modules.values()), default=0)

    @property
    def touched(self) -> frozenset[str]:
        """Every module that it does something to."""
        return frozenset({*self.modules, *self.replaced, *self.token_rows})

    @property
    def has_vocabulary(self) -> bool:
        """Whether it has something of its own for the embedding, or rows for the head."""
        return bool(self.replaced or self.token_rows or self.vocab_size or EMBEDDING in self.modules)

    @property
    def is_additive(self) -> bool:
        """Whether all that it does is add to what the base computes, so that adapters can be added to each other."""
        rescales = any(spec.form in ("ia3", "ia3_in") or "magnitude" in spec.parts for spec in self.modules.values())
        return not (rescales or self.replaced or self.token_rows or self.has_tokenizer)

    @property
    def depends_on_base(self) -> bool:
        """Whether what it adds cannot be told without the weights of the base."""
        parts: frozenset[Part] = frozenset().union(*(spec.parts for spec in self.modules.values()))
        return bool(parts & {"bias", "magnitude"} or self.copies or self.token_rows or self.vocab_size)

    def to_json(self) -> bytes:
        """Canonical bytes: equal specs give equal bytes. They are part of an adapter version's digest."""
        document: dict[str, Any] = {
            "format": 1,
            "modules": {name: spec.to_list() for name, spec in self.modules.items()},
        }
        further = {
            "replaced": sorted(self.replaced),
            "token_rows": {name: list(tokens) for name, tokens in self.token_rows.items()},
            "copies": sorted(self.copies),
            "invocation_tokens": list(self.invocation_tokens),
            "vocab_size": self.vocab_size,
            "added_tokens": [list(astuple(token)) for token in self.added_tokens],
            "special_tokens": dict(self.special_tokens),
        }
        document |= {key: value for key, value in further.items() if value}
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> AdapterSpec:
        """Raises AdapterUnavailable if a later release wrote it; ValueError, KeyError, TypeError or AttributeError if
        nobody did."""
        document = json.loads(data)
        known = {field.name for field in fields(cls)} | {"format"}
        if document.keys() - known or document["format"] != 1:
            raise AdapterUnavailable(_LATER)
        return cls(
            {name: ModuleSpec.from_list(values) for name, values in document["modules"].items()},
            replaced=frozenset(document.get("replaced", ())),
            token_rows={name: tuple(map(int, tokens)) for name, tokens in document.get("token_rows", {}).items()},
            copies=frozenset(document.get("copies", ())),
            invocation_tokens=tuple(map(int, document.get("invocation_tokens", ()))),
            vocab_size=document.get("vocab_size"),
            added_tokens=tuple(AddedToken(*values) for values in document.get("added_tokens", ())),
            special_tokens=document.get("special_tokens", {}),
        )


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
