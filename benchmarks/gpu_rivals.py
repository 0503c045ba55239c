"""What the LoRA kernels are measured against: products per adapter, grouped products, and vLLM's Triton kernels.

Each rival takes the arguments of `Kernels.add_lora` and gives a call that does the same work, prepared as its own
server would. vLLM's files are read from a wheel that the user has, unpacked into an ignored folder, and only run here.
"""

from __future__ import annotations

import importlib
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from loraplex.kernels.ops import LoraBatch

Rival = Callable[[Tensor, Tensor, LoraBatch, int, tuple[int, ...]], Callable[[], object]]

VLLM_FILES = ("kernel_utils", "lora_expand_op", "lora_kernel_metadata", "lora_shrink_op", "utils")
_OPS = "vllm.lora.ops.triton_ops"


def products_per_adapter(
    out: Tensor, x: Tensor, lora: LoraBatch, site: int, slice_widths: tuple[int, ...]
) -> Callable[[], object]:
    """What one writes without a kernel: for every adapter and slice two products, views made beforehand."""
    products = []
    for row, start, end in _spans(lora):
        column = 0
        for a, b in _weights(lora, row, site, x.shape[1], slice_widths):
            if a.shape[0]:
                products.append((out[start:end, column : column + b.shape[1]], x[start:end], a.T, b))
            column += b.shape[1]

    def run() -> None:
        for target, source, a, b in products:
            target.addmm_(source @ a, b)

    return run


def grouped_products(
    out: Tensor, x: Tensor, lora: LoraBatch, site: int, slice_widths: tuple[int, ...]
) -> Callable[[], object]:
    """`torch._grouped_mm`: ranks padded to the largest, the product with A in the model's dtype."""
    spans = _spans(lora)
    ends = torch.tensor([end for _, _, end in spans], dtype=torch.int32, device=x.device)
    stacks = _stacked(lora, [row for row, _, _ in spans], site, x.shape[1], slice_widths)

    def run() -> None:
        column = 0
        for a, b in stacks:
            shrunk = torch._grouped_mm(x, a.transpose(-2, -1), offs=ends)
            out[:, column : column + b.shape[1]] += torch._grouped_mm(shrunk, b.transpose(-2, -1), offs=ends)
            column += b.shape[1]

    return run


def vllm_kernels(wheel: Path, folder: Path) -> Rival:
    """vLLM's shrink and expand, with a buffer for the product with A made at every call, as its server does."""
    modules = _load_vllm(wheel, folder)

    def prepare(
        out: Tensor, x: Tensor, lora: LoraBatch, site: int, slice_widths: tuple[int, ...]
    ) -> Callable[[], object]:
        spans = _spans(lora)
        stacks = _stacked(lora, [row for row, _, _ in spans], site, x.shape[1], slice_widths)
        a_stacks, b_stacks = [a.unsqueeze(1) for a, _ in stacks], [b.unsqueeze(1) for _, b in stacks]
        meta = modules["lora_kernel_metadata"].LoRAKernelMeta.make(len(spans), len(x), x.device)
        mapping = torch.full((len(x),), -1, dtype=torch.int32, device=x.device)
        for slot, (_, start, end) in enumerate(spans):
            mapping[start:end] = slot
        meta.prepare_tensors(mapping)
        # it remembers strides by address, and this address may have held another shape
        modules["utils"]._LORA_A_PTR_DICT.clear()
        modules["utils"]._LORA_B_PTR_DICT.clear()
        buffer_shape = (len(stacks), len(x), a_stacks[0].shape[2])

        def run() -> None:
            arguments = meta.meta_args(len(x), True)
            buffer = torch.empty(buffer_shape, dtype=torch.float32, device=x.device)
            modules["lora_shrink_op"]._lora_shrink(x, a_stacks, buffer, *arguments, 1.0)
            modules["lora_expand_op"]._lora_expand(buffer, b_stacks, out, *arguments, 0, True)

        return run

    return prepare


def _load_vllm(wheel: Path, folder: Path) -> dict[str, types.ModuleType]:
    """Its modules by name. Of vLLM's other parts they find only what they import, made here."""
    import triton
    import triton.language

    files = {f"vllm/lora/ops/triton_ops/{name}.py": name for name in VLLM_FILES}
    with zipfile.ZipFile(wheel) as archive:
        for member in files:
            archive.extract(member, folder)

    def module(name: str, **members: object) -> None:
        made = types.ModuleType(name)
        made.__dict__.update(members)
        made.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = made

    for name in ("vllm", "vllm.lora", "vllm.lora.ops", _OPS, "vllm.utils"):
        module(name)
    environment = {"VLLM_BATCH_INVARIANT": False, "VLLM_TUNED_CONFIG_FOLDER": None}
    module("vllm.envs", **environment, VLLM_LORA_ENABLE_DUAL_STREAM=False, VLLM_LORA_DISABLE_PDL=True)
    sys.modules["vllm"].envs = sys.modules["vllm.envs"]
    quiet = types.SimpleNamespace(warning_once=lambda *_: None, info_once=lambda *_: None)
    module("vllm.logger", init_logger=lambda _: quiet)
    module("vllm.platforms", current_platform=types.SimpleNamespace(is_cuda=torch.cuda.is_available))
    module("vllm.triton_utils", triton=triton, tl=triton.language)
    module("vllm.utils.math_utils", next_power_of_2=triton.next_power_of_2)
    module("vllm.utils.torch_utils", async_tensor_h2d=torch.tensor, direct_register_custom_op=_not_registered)
    return {name: importlib.import_module(f"{_OPS}.{name}") for name in files.values()}


def _not_registered(**_: object) -> None:
    """vLLM falls back to the plain function when its operation cannot be registered."""
    raise AttributeError


def _spans(lora: LoraBatch) -> list[tuple[int, int, int]]:
    """(row of the table, first token, end) of every adapter, in the order of their tokens."""
    spans: dict[int, list[int]] = {}
    for row, first, count, _ in lora.work.tolist():
        if count:
            span = spans.setdefault(row, [first, first])
            span[0], span[1] = min(span[0], first), max(span[1], first + count)
    return sorted(((row, start, end) for row, (start, end) in spans.items()), key=lambda span: span[1])


def _weights(
    lora: LoraBatch, row: int, site: int, in_features: int, slice_widths: tuple[int, ...]
) -> list[tuple[Tensor, Tensor]]:
    """(A [rank, in_features], B [rank, width]) of every slice: views of the pool."""
    a_offset, b_offset, *ranks = lora.table[row, site].tolist()
    weights = []
    for rank, width in zip(ranks, slice_widths, strict=False):
        a = lora.pool[a_offset : a_offset + rank * in_features].view(rank, in_features)
        b = lora.pool[b_offset : b_offset + rank * width].view(rank, width)
        weights.append((a, b))
        a_offset, b_offset = a_offset + a.numel(), b_offset + b.numel()
    return weights


def _stacked(
    lora: LoraBatch, rows: list[int], site: int, in_features: int, slice_widths: tuple[int, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Per slice (A [adapters, rank, in_features], B [adapters, width, rank]), padded with zeros to the
    largest rank, and that to a multiple of 8, which grouped products ask for."""
    of_rows = [_weights(lora, row, site, in_features, slice_widths) for row in rows]
    most = -(-max(a.shape[0] for weights in of_rows for a, _ in weights) // 8) * 8
    stacks = []
    for place, width in enumerate(slice_widths):
        a_stack = lora.pool.new_zeros(len(rows), most, in_features)
        b_stack = lora.pool.new_zeros(len(rows), width, most)
        for slot, weights in enumerate(of_rows):
            a, b = weights[place]
            a_stack[slot, : a.shape[0]] = a
            b_stack[slot, :, : b.shape[0]] = b.T
        stacks.append((a_stack, b_stack))
    return stacks
