"""Decide whether an uploaded PEFT adapter can be served on a base, and if not, say everything that is wrong with it.

Stages, cheapest first: configuration and weights header, then names and shapes, then the numbers themselves. All that
fails in one stage is reported; a later stage runs only if it still makes sense. Knows the base's shape, no tenant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loraplex.adapters.errors import AdapterInvalid
from loraplex.adapters.peft_config import PeftConfig, read_config
from loraplex.adapters.safetensors_header import TensorInfo, read_header
from loraplex.adapters.types import AdapterSpec, BaseShape, ModuleSpec
from loraplex.adapters.untrusted_json import CheckFailed, CheckFailure, parse_object
from loraplex.adapters.weight_scan import TensorStatistics, scan_weights

MAX_REPORTED = 50
"""Most failures in one report; how many more there were is its last entry."""

_PREFIX = "base_model.model."
_TENSOR_NAME = re.compile(re.escape(_PREFIX) + r"([\w.]+)\.lora_(A|B)\.weight", re.ASCII)

Factor = Literal["A", "B"]


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """What an adapter may be at most. `max_scaling` bounds |alpha / r| (rsLoRA: |alpha / sqrt(r)|)."""

    max_rank: int = 128
    max_config_bytes: int = 64 << 10
    max_config_depth: int = 8
    max_weights_bytes: int = 1 << 30
    max_scaling: float = 256.0


@dataclass(frozen=True, slots=True)
class ModuleStatistics:
    """How large the numbers of a module's factors are."""

    a: TensorStatistics
    b: TensorStatistics


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """An adapter that passed. `statistics` has one entry per module of `spec`."""

    spec: AdapterSpec
    weights_sha256: str
    statistics: Mapping[str, ModuleStatistics]

    @property
    def targets(self) -> list[str]:
        """The last parts of its modules' names, such as `q_proj`, each once."""
        return sorted({module.rsplit(".", 1)[-1] for module in self.spec.modules})


def check_adapter(config_path: Path, weights_path: Path, shape: BaseShape, limits: AdapterLimits) -> CheckedAdapter:
    """Check the two files of an adapter against the base. Raises AdapterInvalid with a report of what failed.

    Reads the weights file once and holds a few megabytes of it at a time.
    """
    config, tensors = _read_files(config_path, weights_path, limits)
    pairs, failures = _pair_up(tensors, shape)
    failures += _check_pairs(pairs, config, shape, limits)
    _raise_if_any(failures)
    spec = AdapterSpec({module: ModuleSpec(config.rank_of(module), config.scaling_of(module)) for module in pairs})
    weights_sha256, statistics = scan_weights(weights_path, tensors)
    _raise_if_any(_check_numbers(pairs, statistics))
    by_module = {
        module: ModuleStatistics(statistics[pair["A"].name], statistics[pair["B"].name])
        for module, pair in pairs.items()
    }
    return CheckedAdapter(spec, weights_sha256, by_module)


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


Pairs = dict[str, dict[Factor, TensorInfo]]


def _pair_up(tensors: Sequence[TensorInfo], shape: BaseShape) -> tuple[Pairs, list[CheckFailure]]:
    """Tensors by module, and those that belong to none."""
    modules = shape.modules()
    pairs: Pairs = {}
    failures = []
    for tensor in tensors:
        match = _TENSOR_NAME.fullmatch(tensor.name)
        if match is None:
            failures.append(_stray_tensor(tensor.name))
        elif match[1] not in modules:
            known = ", ".join(sorted({part.module for site in shape.sites for part in site.slices}))
            message = f"{match[1]} takes no LoRA on this base; train with target_modules among {known}"
            expected = f"model.layers.0..{shape.num_layers - 1} and one of {known}"
            failures.append(CheckFailure("unknown_module", tensor.name, message, expected, match[1]))
        else:
            pairs.setdefault(match[1], {})["A" if match[2] == "A" else "B"] = tensor
    if not tensors:
        failures.append(CheckFailure("no_modules", "weights", "the file has no tensors; save a trained adapter"))
    return pairs, failures


def _stray_tensor(name: str) -> CheckFailure:
    expected = f"{_PREFIX}<module>.lora_A.weight or .lora_B.weight"
    if ".lora_magnitude_vector" in name:
        return CheckFailure(
            "dora_unsupported", name, f"{name} belongs to DoRA; train with use_dora off", expected, name
        )
    message = (
        f"{name} is not a LoRA factor as PEFT names it; save only the LoRA of linear modules, with save_pretrained"
    )
    return CheckFailure("unknown_tensor", name, message, expected, name)


def _check_pairs(pairs: Pairs, config: PeftConfig, shape: BaseShape, limits: AdapterLimits) -> list[CheckFailure]:
    modules = shape.modules()
    failures: list[CheckFailure] = []
    refused_scalings: set[float] = set()
    for module, pair in pairs.items():
        in_features, out_features = modules[module]
        rank, scaling = config.rank_of(module), config.scaling_of(module)
        failures += _check_factor(pair.get("A"), module, "A", (rank, in_features))
        failures += _check_factor(pair.get("B"), module, "B", (out_features, rank))
        if not config.is_target(module):
            message = f"{module} has tensors but is not in target_modules; save the adapter again with PEFT"
            failures.append(CheckFailure("module_not_targeted", module, message))
        if not 0 < abs(scaling) <= limits.max_scaling and scaling not in refused_scalings:
            refused_scalings.add(scaling)
            code = "scaling_too_large" if scaling else "scaling_zero"
            expected = f"not 0, and at most {limits.max_scaling:g}"
            message = f"{module}: lora_alpha and rank {rank} give a scaling of {scaling:g}; it must be {expected}"
            failures.append(CheckFailure(code, module, message, expected, f"{scaling:g}"))
    return failures


def _check_factor(
    tensor: TensorInfo | None, module: str, factor: Factor, expected: tuple[int, int]
) -> list[CheckFailure]:
    if tensor is None:
        message = f"{module} has no lora_{factor}.weight; save the adapter again with PEFT"
        return [CheckFailure(f"missing_lora_{factor.lower()}", module, message)]
    if tensor.shape == expected:
        return []
    rank_axis = 0 if factor == "A" else 1
    only_rank_differs = len(tensor.shape) == 2 and tensor.shape[1 - rank_axis] == expected[1 - rank_axis]
    if only_rank_differs:
        code, remedy = "rank_mismatch", "upload the adapter_config.json that was saved with these weights"
    else:
        code, remedy = "wrong_shape", "the adapter was trained on another base model"
    message = f"{tensor.name} has shape {list(tensor.shape)}, expected {list(expected)}: {remedy}"
    return [CheckFailure(code, tensor.name, message, str(list(expected)), str(list(tensor.shape)))]


def _check_numbers(pairs: Pairs, statistics: Mapping[str, TensorStatistics]) -> list[CheckFailure]:
    failures = [
        CheckFailure("not_finite", name, f"{name} holds NaN or infinity; train again with a lower learning rate")
        for name, numbers in statistics.items()
        if not numbers.is_finite
    ]
    if not failures and all(
        statistics[pair["A"].name].max_abs == 0 or statistics[pair["B"].name].max_abs == 0 for pair in pairs.values()
    ):
        message = "every lora_B (or lora_A) is zero, so the adapter changes nothing; upload a trained one"
        failures.append(CheckFailure("no_effect", "weights", message))
    return failures


def _raise_if_any(failures: Sequence[CheckFailure]) -> None:
    if not failures:
        return
    report: list[dict[str, Any]] = [failure.as_dict() for failure in failures[:MAX_REPORTED]]
    if len(failures) > MAX_REPORTED:
        message = f"and {len(failures) - MAX_REPORTED} more"
        report.append(CheckFailure("more_failures", "report", message).as_dict())
    raise AdapterInvalid(report)
