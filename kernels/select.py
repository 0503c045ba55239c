"""Choose the kernels for a device, once, at start, and say which and why.

Knows which implementations exist; imports the one it chooses, and nothing of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch

from loraplex.kernels.native import NativeKernels
from loraplex.kernels.native_library import NativeUnavailable
from loraplex.kernels.ops import Kernels
from loraplex.kernels.reference import ReferenceKernels

Preference = Literal["auto", "reference", "native", "triton"]


class KernelsUnavailable(Exception):
    """The kernels that were asked for by name cannot run here; the message says why and what to do."""


def choose_kernels(
    device: torch.device, prefer: str = "auto", *, environment: Mapping[str, str] | None = None
) -> tuple[Kernels, str]:
    """The kernels for `device`, and one sentence for the log.

    prefer: "auto" takes the fastest that works here; a name takes that one or raises KernelsUnavailable.
    environment stands for os.environ where the compiler and its cache are looked for.
    """
    if prefer not in get_args(Preference):
        raise KernelsUnavailable(f"kernels: {prefer!r} is none of {', '.join(get_args(Preference))}")
    if prefer == "reference":
        return ReferenceKernels(), f"reference: plain torch on {device.type}, as asked for"
    if prefer == "native" or (prefer == "auto" and device.type == "cpu"):
        return _native(device, environment, may_fall_back=prefer == "auto")
    if prefer == "triton" or device.type == "cuda":
        return _triton(device, may_fall_back=prefer == "auto")
    return ReferenceKernels(), f"reference: there are no kernels of our own for {device.type}"


def _native(device: torch.device, environment: Mapping[str, str] | None, *, may_fall_back: bool) -> tuple[Kernels, str]:
    try:
        if device.type != "cpu":
            raise NativeUnavailable(f"native kernels run on the CPU, not on {device.type}; choose triton or auto")
        kernels = NativeKernels(environment)
    except NativeUnavailable as error:
        if may_fall_back:
            return ReferenceKernels(), f"reference: {error}"
        raise KernelsUnavailable(f"kernels: native: {error}") from error
    return kernels, f"native: compiled for this CPU with {kernels.instructions}"


def _triton(device: torch.device, *, may_fall_back: bool) -> tuple[Kernels, str]:
    try:
        if device.type != "cuda":
            raise ImportError(f"Triton kernels run on GPUs, not on {device.type}; choose native or auto")
        from loraplex.kernels.triton_backend import TritonKernels
    except ImportError as error:
        if may_fall_back:
            return ReferenceKernels(), f"reference: Triton cannot be imported ({error}); install loraplex[gpu]"
        raise KernelsUnavailable(f"kernels: triton: {error}") from error
    return TritonKernels(), f"triton: compiled for {torch.cuda.get_device_name(device)}"
