"""Decide whether an uploaded PEFT adapter can be served on a base, and if not, say everything that is wrong with it.

Stages, cheapest first: configuration and weights header, then names and shapes, then the numbers themselves. All that
fails in one stage is reported; a later stage runs only if it still makes sense. Knows the base's shape, no tenant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraplex.adapters.errors import AdapterInvalid
from loraplex.adapters.peft_config import PeftConfig, read_config
from loraplex.adapters.peft_tensors import ModuleTensors, TensorTable
from loraplex.adapters.safetensors_header import TensorInfo, read_header
from loraplex.adapters.tokenizer_file import TokenizerDifference
from loraplex.adapters.types import EMBEDDING, HEAD, MATRIX_ENDS, AdapterSpec, BaseShape
from loraplex.adapters.untrusted_json import CheckFailed, CheckFailure, parse_object
from loraplex.adapters.weight_scan import TensorStatistics, scan_weights

MAX_SPARE_ROWS = 1024
"""Of an embedding beyond its tokens: it is made a multiple of a round number."""

MAX_REPORTED = 50
"""Most failures in one report; how many more there were is its last entry."""


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """What an adapter may be at most. `max_rank`: of the LoRA that a module becomes; `max_scaling` bounds |alpha / r|
    (rsLoRA: |alpha / sqrt(r)|)."""

    max_rank: int = 128
    max_config_bytes: int = 256 << 10
    max_config_depth: int = 8
    max_weights_bytes: int = 1 << 30
    max_scaling: float = 256.0


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """An adapter that passed. statistics: module -> the end of a tensor's name (`lora_A.weight`) -> how large its
    numbers are."""

    spec: AdapterSpec
    weights_sha256: str
    statistics: Mapping[str, Mapping[str, TensorStatistics]]

    @property
    def targets(self) -> list[str]:
        """The last parts of its modules' names, such as `q_proj`, each once."""
        return sorted({module.rsplit(".", 1)[-1] for module in self.spec.touched})


def check_adapter(
    config_path: Path,
    weights_path: Path,
    shape: BaseShape,
    limits: AdapterLimits,
    tokenizer: TokenizerDifference | None = None,
) -> CheckedAdapter:
    """Check the two files of an adapter against the base. Raises AdapterInvalid with a report of what failed.

    Reads the weights file once and holds a few megabytes of it at a time. tokenizer: of the adapter, None: the base's.
    """
    config, tensors = _read_files(config_path, weights_path, limits)
    table = TensorTable(tensors, shape)
    table.compare(config)
    _raise_if_any([*table.failures, *_check_limits(table.modules, config, shape, limits)])
    _raise_if_any(_check_vocabulary(table.vocab_size, shape, tokenizer))
    spec = _spec(table, config, shape, tokenizer)
    weights_sha256, by_name = scan_weights(weights_path, tensors)
    statistics = {
        module: {end: by_name[tensor.name] for end, tensor in found.by_end.items()}
        for module, found in table.modules.items()
    }
    _raise_if_any(_check_numbers(table.modules, spec, statistics, by_name))
    return CheckedAdapter(spec, weights_sha256, statistics)


def _read_files(
    config_path: Path, weights_path: Path, limits: AdapterLimits
) -> tuple[PeftConfig, tuple[TensorInfo, ...]]:
    config: PeftConfig | None = None
    tensors: tuple[TensorInfo, ...] = ()
    failures: list[CheckFailure] = []
    try:
        _check_size(config_path, "config", limits.max_config_bytes)
        config, failures = read_config(
            parse_object(config_path.read_bytes(), "config", limits.max_config_depth), limits.max_rank
        )
    except CheckFailed as error:
        failures = [error.failure]
    try:
        _check_size(weights_path, "weights", limits.max_weights_bytes)
        tensors = read_header(weights_path)
    except CheckFailed as error:
        failures.append(error.failure)
    _raise_if_any(failures)
    assert config is not None
    return config, tensors


def _check_size(path: Path, kind: str, max_bytes: int) -> None:
    size = path.stat().st_size
    if size > max_bytes:
        message = f"{path.name} has {size} bytes and may have {max_bytes}; upload a smaller one"
        raise CheckFailed(CheckFailure(f"{kind}_too_large", kind, message, f"at most {max_bytes} bytes", str(size)))


def _check_limits(
    modules: Mapping[str, ModuleTensors], config: PeftConfig, shape: BaseShape, limits: AdapterLimits
) -> list[CheckFailure]:
    failures: list[CheckFailure] = []
    refused_scalings: set[float] = set()
    for module, found in modules.items():
        rank, scaling = (found.spec.rank, found.spec.scaling) if found.spec else (0, 1.0)
        if rank > limits.max_rank:
            expected = f"at most {limits.max_rank}"
            message = f"{module} amounts to a LoRA of rank {rank}; train with a smaller rank ({expected})"
            failures.append(CheckFailure("rank_too_large", module, message, expected, str(rank)))
        if not 0 < abs(scaling) <= limits.max_scaling and scaling not in refused_scalings:
            refused_scalings.add(scaling)
            code = "scaling_too_large" if scaling else "scaling_zero"
            expected = f"not 0, and at most {limits.max_scaling:g}"
            message = f"{module}: alpha and rank {rank} give a scaling of {scaling:g}; it must be {expected}"
            failures.append(CheckFailure(code, module, message, expected, f"{scaling:g}"))
    if (last := max(config.invocation_tokens, default=0)) >= shape.vocab_size:
        expected = f"below {shape.vocab_size}"
        where = "alora_invocation_tokens"
        message = f"{where}: {last} is no token of the base; train on this base ({expected})"
        failures.append(CheckFailure("invocation_tokens_invalid", where, message, expected, str(last)))
    return failures


def _check_vocabulary(vocab_size: int, shape: BaseShape, tokenizer: TokenizerDifference | None) -> list[CheckFailure]:
    """Of an adapter with another number of tokens than the base: its tokenizer says what they are."""
    if vocab_size == shape.vocab_size:
        return []
    expected, got = f"{shape.vocab_size} rows, or more for added tokens", str(vocab_size)
    sizes = f"the embedding has {vocab_size} rows and the base's {shape.vocab_size}"
    if tokenizer is None:
        message = f"{sizes}: send the adapter's tokenizer.json, too; if it has none, it was trained on another base"
        return [CheckFailure("vocabulary_changed", "weights", message, expected, got)]
    if not tokenizer.size <= vocab_size <= max(tokenizer.size, shape.vocab_size) + MAX_SPARE_ROWS:
        message = f"{sizes}, and tokenizer.json knows {tokenizer.size} tokens: upload files that were saved together"
        return [CheckFailure("vocabulary_changed", "weights", message, expected, got)]
    return []


def _spec(
    table: TensorTable, config: PeftConfig, shape: BaseShape, tokenizer: TokenizerDifference | None
) -> AdapterSpec:
    """Left out is a module whose rank training brought to 0, and that has nothing else, and a token without a row."""
    modules, tokenizer = table.modules, tokenizer or TokenizerDifference(size=0)
    ends = {name: modules[name].by_end for name in (EMBEDDING, HEAD) if name in modules}
    matrices = {name for name, tensors in ends.items() if "weight" in tensors}
    replaced = matrices if config.ties_weights and config.saved_modules else matrices & config.saved_modules
    return AdapterSpec(
        {name: found.spec for name, found in modules.items() if found.spec and found.spec.does_something},
        replaced=frozenset(replaced),
        token_rows={
            name: config.token_rows.get(name) or config.token_rows[EMBEDDING]
            for name, tensors in ends.items()
            if any(end.endswith("trainable_tokens_delta") for end in tensors)
        },
        copies=frozenset(name for name in ends.keys() - replaced if ends[name].keys() & set(MATRIX_ENDS)),
        invocation_tokens=config.invocation_tokens,
        vocab_size=None if table.vocab_size == shape.vocab_size else table.vocab_size,
        added_tokens=tuple(token for token in tokenizer.added if token.id < table.vocab_size),
        special_tokens=tokenizer.special_tokens,
    )


def _check_numbers(
    modules: Mapping[str, ModuleTensors],
    spec: AdapterSpec,
    statistics: Mapping[str, Mapping[str, TensorStatistics]],
    by_name: Mapping[str, TensorStatistics],
) -> list[CheckFailure]:
    failures = [
        CheckFailure("not_finite", name, f"{name} holds NaN or infinity; train again with a lower learning rate")
        for name, numbers in by_name.items()
        if not numbers.is_finite
    ]
    if (
        not failures
        and not (spec.replaced or spec.token_rows or spec.vocab_size)
        and all(_is_zero(modules[name].product, statistics[name]) for name in spec.modules)
    ):
        message = "every lora_B (or lora_A) is zero, so the adapter changes nothing; upload a trained one"
        failures.append(CheckFailure("no_effect", "weights", message))
    return failures


def _is_zero(product: tuple[str, ...] | None, statistics: Mapping[str, TensorStatistics]) -> bool:
    return product is not None and any(statistics[end].max_abs == 0 for end in product)


def _raise_if_any(failures: Sequence[CheckFailure]) -> None:
    if not failures:
        return
    report: list[dict[str, Any]] = [failure.as_dict() for failure in failures[:MAX_REPORTED]]
    if len(failures) > MAX_REPORTED:
        message = f"and {len(failures) - MAX_REPORTED} more"
        report.append(CheckFailure("more_failures", "report", message).as_dict())
    raise AdapterInvalid(report)
