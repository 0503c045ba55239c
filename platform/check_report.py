"""What the checks of an adapter's files found out, as the first entries of its version's report.

Knows what the checks return; what running the version adds is `proof`'s.
"""

from __future__ import annotations

from typing import Any

from loraplex.adapters.peft_checks import CheckedAdapter
from loraplex.adapters.tokenizer_file import TokenizerDifference
from loraplex.adapters.types import BaseShape


def report_of_checks(
    adapter: CheckedAdapter, tokenizer: TokenizerDifference | None, shape: BaseShape
) -> list[dict[str, Any]]:
    """tokenizer: that came with the adapter, if one did."""
    report = [_statistics(adapter, shape)]
    if tokenizer is not None:
        spec = adapter.spec
        report.append(
            {
                "code": "tokenizer",
                "added_tokens": len(spec.added_tokens),
                "without_row": len(tokenizer.added) - len(spec.added_tokens),
                "special_tokens": dict(spec.special_tokens),
                "base_instead_of": list(tokenizer.ignored),
            }
        )
    return report


def _statistics(checked: CheckedAdapter, shape: BaseShape) -> dict[str, Any]:
    layers = shape.modules().keys()
    tensors = [numbers for module in checked.statistics.values() for numbers in module.values()]
    return {
        "code": "statistics",
        "modules": len(checked.spec.touched),
        "share_of_modules": len(checked.spec.modules.keys() & layers) / len(layers),
        "largest_weight": max(numbers.max_abs for numbers in tensors),
        "largest_norm": max(numbers.norm for numbers in tensors),
        "norms": {
            name: {end: _short(numbers.norm) for end, numbers in module.items()}
            for name, module in checked.statistics.items()
        },
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")
