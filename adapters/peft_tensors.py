"""Which tensors of a weights file belong to which module, and whether they are those that the configuration speaks of.

Knows names and shapes; knows no numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loraplex.adapters.peft_config import PeftConfig
from loraplex.adapters.safetensors_header import TensorInfo
from loraplex.adapters.types import EMBEDDING, HEAD, MATRIX_ENDS, ROW_ENDS, BaseShape, ModuleSpec
from loraplex.adapters.untrusted_json import CheckFailure

_PREFIX = "base_model.model."
_SHARED = {f"base_model.{name}": name for name in ("vera_A", "vera_B")}
_ADAPTER_TENSOR = re.compile(r"([\w.]+?)\.(?:lora|hada|lokr|vera|miss|ia3|beft)_\w+(?:\.\w+)*", re.ASCII)
_BIASES = {"base_layer.bias": "targets", "bias": "all"}
_RANK_IS_LAST = re.compile(r"\.lora_(embedding_)?B(\.weight)?|_w[12]_a", re.ASCII)
_UNUSED_MATRICES = ("modules_to_save.weight", "original_module.weight")
"""PEFT saves a matrix of `modules_to_save` again under the first name, and the base's under the second one, when there
are other tokens than the base's."""

_OTHER_TOKENS = (
    "for another vocabulary than the base's give the embedding and the head new rows as a whole, with "
    "resize_token_embeddings, and train them with modules_to_save or trainable_token_indices"
)


@dataclass(slots=True)
class ModuleTensors:
    """What the file has for one module. by_end: by what follows the module's name, such as `lora_A.weight`.

    spec, product: see `peft_method.Expected`; spec None: no adapter, but rows or a matrix.
    """

    inputs: int
    outputs: int
    by_end: dict[str, TensorInfo] = field(default_factory=dict)
    spec: ModuleSpec | None = None
    product: tuple[str, ...] | None = None


class TensorTable:
    """The tensors of a file by module, compared with a base and a configuration; `failures` says what does not fit.

    vocab_size: of its embedding and its head; the base's where it has neither.
    """

    def __init__(self, tensors: Sequence[TensorInfo], shape: BaseShape) -> None:
        self.failures: list[CheckFailure] = []
        self.modules: dict[str, ModuleTensors] = {}
        self.vocab_size = _vocab_size(tensors, shape)
        self._shared: dict[str, TensorInfo] = {}
        self._shape = shape
        known = shape.modules() | _ends(self.vocab_size, shape.hidden_size)
        for tensor in tensors:
            self._place(tensor, known)
        if not self.modules and not self.failures:
            message = "the file has no tensors; save a trained adapter"
            self.failures.append(CheckFailure("no_modules", "weights", message))

    def compare(self, config: PeftConfig) -> None:
        """Every module's tensors with what PEFT saves for this configuration."""
        shared: dict[str, tuple[int, ...]] = {}
        for module, tensors in self.modules.items():
            ends = set(tensors.by_end)
            self._check_vocabulary(module, tensors, config, ends)
            self._check_bias(module, tensors, config, ends)
            if ends:
                self._check_adapter(module, tensors, config, ends, shared)
        for module in sorted(config.saved_modules | config.token_rows.keys()):
            self._check_present(module, config)
        if self.vocab_size != self._shape.vocab_size:
            self._check_other_vocabulary(config)
        self._check_shared(shared)

    def _place(self, tensor: TensorInfo, known: Mapping[str, tuple[int, int]]) -> None:
        parts = tensor.name.removeprefix(_PREFIX).split(".")
        if tensor.name.startswith(_PREFIX):
            for cut in range(len(parts) - 1, 0, -1):
                module = ".".join(parts[:cut])
                if module in known:
                    placed = self.modules.setdefault(module, ModuleTensors(*known[module]))
                    placed.by_end[".".join(parts[cut:])] = tensor
                    return
        elif tensor.name in _SHARED:
            self._shared[_SHARED[tensor.name]] = tensor
            return
        self._stray(tensor.name)

    def _stray(self, name: str) -> None:
        match = _ADAPTER_TENSOR.fullmatch(name.removeprefix(_PREFIX))
        if match and name.startswith(_PREFIX):
            targets = sorted({part.module for site in self._shape.sites for part in site.slices})
            served = ", ".join([*targets, HEAD, EMBEDDING])
            message = f"{match[1]} takes no adapter on this base; train with target_modules among {served}"
            expected = f"model.layers.0..{self._shape.num_layers - 1} and one of {served}"
            self.failures.append(CheckFailure("unknown_module", name, message, expected, match[1]))
        else:
            message = f"{name} is no tensor of an adapter as PEFT names it; save the adapter with save_pretrained"
            self.failures.append(CheckFailure("unknown_tensor", name, message, f"{_PREFIX}<module>.<...>", name))

    def _check_vocabulary(self, module: str, tensors: ModuleTensors, config: PeftConfig, ends: set[str]) -> None:
        """A matrix or rows of the embedding and the head; what is found is taken out of `ends`."""
        if module not in (EMBEDDING, HEAD):
            return
        matrix = (self.vocab_size, self._shape.hidden_size)
        for end in ends & {*MATRIX_ENDS, *_UNUSED_MATRICES}:
            ends.discard(end)
            self._check_shape(module, tensors.by_end[end], matrix)
        rows = [end for end in ROW_ENDS if end in ends]
        tokens = config.token_rows.get(module) or config.token_rows.get(EMBEDDING, ())
        for end in rows if tokens else ():
            ends.discard(end)
            self._check_shape(module, tensors.by_end[end], (len(tokens), self._shape.hidden_size))
            if max(tokens) >= self.vocab_size:
                message = f"{module}: token {max(tokens)} is beyond its {self.vocab_size}; {_OTHER_TOKENS}"
                self.failures.append(CheckFailure("vocabulary_changed", module, message))
        if (rows or "weight" in tensors.by_end) and ends:
            message = f"{module} has rows or a matrix of its own and an adapter too, which PEFT cannot load; choose one"
            self.failures.append(CheckFailure("embedding_twice", module, message))
            ends.clear()

    def _check_bias(self, module: str, tensors: ModuleTensors, config: PeftConfig, ends: set[str]) -> None:
        for end, wanted in _BIASES.items():
            if end in ends and module != EMBEDDING and config.trains_biases in ("all", wanted):
                ends.discard(end)
                self._check_shape(module, tensors.by_end[end], (tensors.outputs,))
                tensors.spec = ModuleSpec(0, 1.0, parts=frozenset({"bias"}))

    def _check_adapter(
        self,
        module: str,
        tensors: ModuleTensors,
        config: PeftConfig,
        ends: set[str],
        shared: dict[str, tuple[int, ...]],
    ) -> None:
        expected = config.method.expect(module, tensors.inputs, tensors.outputs)
        if isinstance(expected, str):
            self.failures.append(CheckFailure("module_unsupported", module, f"{module}: {expected}"))
            return
        if not config.is_target(module):
            message = f"{module} has tensors but is not in target_modules; save the adapter again with PEFT"
            self.failures.append(CheckFailure("module_not_targeted", module, message))
        for end, expected_shape in expected.shapes.items():
            if end in ends:
                self._check_shape(module, tensors.by_end[end], expected_shape)
            else:
                message = f"{module} has no {end}; save the adapter again with PEFT"
                self.failures.append(CheckFailure(f"missing_{end.removesuffix('.weight').lower()}", module, message))
        for end in sorted(ends - expected.shapes.keys()):
            if not end.startswith(expected.ignored):
                name = tensors.by_end[end].name
                message = f"{name} is not in the configuration; upload the two files that were saved together"
                self.failures.append(CheckFailure("unknown_tensor", name, message, ", ".join(expected.shapes), end))
        for name, least in expected.shared.items():
            shared[name] = tuple(map(max, shared.get(name, least), least))
        parts = expected.spec.parts | (tensors.spec.parts if tensors.spec else frozenset())
        spec = expected.spec
        tensors.spec = ModuleSpec(spec.rank, spec.scaling, spec.form, parts)
        tensors.product = None if "bias" in parts else expected.product

    def _check_present(self, module: str, config: PeftConfig) -> None:
        """Of a matrix or rows that the configuration speaks of. A head whose rows are the embedding's has none."""
        ends = self.modules[module].by_end.keys() if module in self.modules else set()
        is_tied = module == HEAD and config.token_rows.get(HEAD) == config.token_rows.get(EMBEDDING)
        is_present = "weight" in ends if module in config.saved_modules else is_tied or not ends.isdisjoint(ROW_ENDS)
        if not is_present:
            message = f"{module} is in the configuration, but not in the file; save the adapter again with PEFT"
            self.failures.append(CheckFailure("missing_module", module, message))

    def _check_other_vocabulary(self, config: PeftConfig) -> None:
        """The embedding's rows are in the file, and nothing is done to it or the head but to give them rows."""
        for module in (EMBEDDING, HEAD):
            if module in self.modules and self.modules[module].spec is not None:
                message = f"{module} has {self.vocab_size} rows and an adapter; {_OTHER_TOKENS}"
                self.failures.append(CheckFailure("vocabulary_changed", module, message))
        if EMBEDDING not in self.modules or not self.modules[EMBEDDING].by_end.keys() & set(MATRIX_ENDS):
            message = f"the file has another {HEAD} and not its {EMBEDDING}; save with save_embedding_layers=True"
            self.failures.append(CheckFailure("vocabulary_changed", EMBEDDING, message))

        if config.invocation_tokens:
            message = "before its invocation an aLoRA must leave the base as it is; train it with the base's tokens"
            self.failures.append(CheckFailure("alora_combined", "alora_invocation_tokens", message))

    def _check_shared(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        for name, tensor in self._shared.items():
            if name not in expected:
                self._stray(tensor.name)
        for name, shape in expected.items():
            if name in self._shared:
                self._check_shape("", self._shared[name], shape)
            else:
                message = f"the file has no {name}; save the adapter again with PEFT"
                self.failures.append(CheckFailure(f"missing_{name.lower()}", name, message))

    def _check_shape(self, module: str, tensor: TensorInfo, expected: tuple[int, ...]) -> None:
        if tensor.shape == expected:
            return
        name, got = tensor.name, list(tensor.shape)
        code, remedy = "wrong_shape", "the adapter was trained on another base model"
        differing = {wanted for had, wanted in zip(got, expected, strict=False) if had != wanted}
        if module in (EMBEDDING, HEAD) and len(got) == len(expected) and differing == {self.vocab_size}:
            code, remedy = "vocabulary_changed", _OTHER_TOKENS
        elif _only_rank_differs(name, got, expected):
            code, remedy = "rank_mismatch", "upload the adapter_config.json that was saved with these weights"
        message = f"{name} has shape {got}, expected {list(expected)}: {remedy}"
        self.failures.append(CheckFailure(code, name, message, str(list(expected)), str(got)))


def _only_rank_differs(name: str, got: list[int], expected: tuple[int, ...]) -> bool:
    other_axis = 0 if _RANK_IS_LAST.search(name) else 1
    return len(got) == len(expected) == 2 and got[other_axis] == expected[other_axis]


def _vocab_size(tensors: Sequence[TensorInfo], shape: BaseShape) -> int:
    """That of the first matrix of the embedding or the head in the file: others are compared with it later on."""
    matrices = {f"{_PREFIX}{module}.{end}" for module in (EMBEDDING, HEAD) for end in MATRIX_ENDS}
    found = (tensor.shape for tensor in tensors if tensor.name in matrices)
    return next((size[0] for size in found if size[1:] == (shape.hidden_size,)), shape.vocab_size)


def _ends(vocab_size: int, hidden_size: int) -> dict[str, tuple[int, int]]:
    """The embedding and the head: (in_features, out_features)."""
    return {EMBEDDING: (vocab_size, hidden_size), HEAD: (hidden_size, vocab_size)}
