"""The header of a safetensors file that a stranger made: parsed and proved to describe exactly the bytes of the file.

Knows the file format only; knows no adapter. Reads the header and no tensor.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraplex.adapters.untrusted_json import CheckFailed, CheckFailure, parse_object, shown

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000
MAX_NAME_CHARS = 256
MAX_DIMENSIONS = 8
ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4}

_LENGTH_BYTES = 8
_HEADER_DEPTH = 3
_NAME = re.compile(r"[A-Za-z0-9_.]+")
_SAVE_AGAIN = "save the adapter again with PEFT (safe_serialization=True)"
_DISGUISES = (
    (b"PK\x03\x04", "pickle_file", "this is a zip archive, as torch.save writes it, not a safetensors file"),
    (b"\x80\x02", "pickle_file", "this is a pickle, not a safetensors file"),
    (b"\x80\x03", "pickle_file", "this is a pickle, not a safetensors file"),
    (b"\x80\x04", "pickle_file", "this is a pickle, not a safetensors file"),
    (b"\x80\x05", "pickle_file", "this is a pickle, not a safetensors file"),
    (b"version https://git-lfs", "lfs_pointer", "this is a Git LFS pointer, not the file it points at"),
)
_REMEDIES = {
    "pickle_file": "pickles are never opened here: load it in PyTorch and write it with safetensors.torch.save_file",
    "lfs_pointer": "run `git lfs pull` and upload again",
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: its bytes are file[start:end]."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> tuple[TensorInfo, ...]:
    """The tensors of the file in the order of their bytes. Raises CheckFailed when anything is off."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(32)
        header_bytes = _header_length(prefix, file_bytes)
        file.seek(_LENGTH_BYTES)
        header = file.read(header_bytes)
    if not header.startswith(b"{"):
        raise _failed("header_not_json", "header", f"not a safetensors file; {_SAVE_AGAIN}")
    entries = parse_object(header, "header", _HEADER_DEPTH)
    _check_metadata(entries.pop("__metadata__", {}))
    if len(entries) > MAX_TENSORS:
        raise _failed("too_many_tensors", "header", _SAVE_AGAIN, f"at most {MAX_TENSORS}", str(len(entries)))
    data_start = _LENGTH_BYTES + header_bytes
    tensors = sorted(
        (_tensor(name, entry, data_start) for name, entry in entries.items()),
        key=lambda tensor: (tensor.start, tensor.end),
    )
    _check_layout(tensors, data_start, file_bytes)
    return tuple(tensors)


def _header_length(prefix: bytes, file_bytes: int) -> int:
    header_bytes = int.from_bytes(prefix[:_LENGTH_BYTES], "little")
    plausible = header_bytes <= MAX_HEADER_BYTES and prefix[_LENGTH_BYTES : _LENGTH_BYTES + 1] in (b"{", b"")
    if not plausible:  # a genuine length may begin with the bytes of a pickle, so this comes second
        for magic, code, what in _DISGUISES:
            if prefix.startswith(magic):
                raise _failed(code, "weights", f"{what}; {_REMEDIES[code]}")
    if file_bytes <= _LENGTH_BYTES:
        raise _failed("truncated", "weights", "the file ends before its header; upload the whole file")
    if header_bytes > MAX_HEADER_BYTES:
        limit = f"at most {MAX_HEADER_BYTES} bytes"
        raise _failed("header_too_large", "header", f"not a safetensors file; {_SAVE_AGAIN}", limit, str(header_bytes))
    if header_bytes > file_bytes - _LENGTH_BYTES:
        raise _failed(
            "truncated",
            "weights",
            "the file ends inside its header; upload the whole file",
            f"{header_bytes + _LENGTH_BYTES} bytes or more",
            str(file_bytes),
        )
    return header_bytes


def _check_metadata(metadata: Any) -> None:
    """Free text of whoever wrote the file: nothing is read from it, it only must not stop others from reading."""
    try:
        is_text = isinstance(metadata, dict) and all("".join(pair).encode() is not None for pair in metadata.items())
    except (TypeError, UnicodeEncodeError):
        is_text = False
    if not is_text:
        raise _failed("bad_metadata", "__metadata__", _SAVE_AGAIN, "an object of strings", shown(metadata))


def _tensor(name: str, entry: Any, data_start: int) -> TensorInfo:
    where = shown(name)
    if len(name) > MAX_NAME_CHARS or not _NAME.fullmatch(name):
        raise _failed(
            "bad_tensor_name", where, f"use letters, digits, _ and . only, {MAX_NAME_CHARS} characters at most"
        )
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _failed("bad_tensor_entry", where, _SAVE_AGAIN, "dtype, shape and data_offsets", shown(entry))
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _failed("bad_dtype", where, "convert the tensor", " or ".join(ITEM_BYTES), shown(dtype))
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise _failed("bad_shape", where, _SAVE_AGAIN, f"at most {MAX_DIMENSIONS} whole numbers", shown(shape))
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _failed("bad_offsets", where, _SAVE_AGAIN, "[begin, end]", shown(offsets))
    begin, end = offsets
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != needed:
        raise _failed("size_mismatch", where, _SAVE_AGAIN, f"{needed} bytes for its shape and dtype", str(end - begin))
    if (data_start + begin) % ITEM_BYTES[dtype]:
        raise _failed("misaligned", where, _SAVE_AGAIN, f"a multiple of {ITEM_BYTES[dtype]}", str(data_start + begin))
    return TensorInfo(name, dtype, tuple(shape), data_start + begin, data_start + end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_layout(tensors: list[TensorInfo], data_start: int, file_bytes: int) -> None:
    end = data_start
    for tensor in tensors:
        if tensor.end > file_bytes:
            message = "the tensor ends beyond the file; upload the whole file"
            raise _failed("offsets_out_of_file", tensor.name, message, f"<= {file_bytes}", str(tensor.end))
        if tensor.start < end:
            raise _failed("offsets_overlap", tensor.name, _SAVE_AGAIN, f"start at {end}", str(tensor.start))
        if tensor.start > end:
            raise _failed("offsets_hole", tensor.name, _SAVE_AGAIN, f"start at {end}", str(tensor.start))
        end = tensor.end
    if end != file_bytes:
        message = "bytes follow the last tensor; upload the file as it was saved"
        raise _failed("trailing_bytes", "weights", message, f"{end} bytes", str(file_bytes))


def _failed(code: str, where: str, message: str, expected: str | None = None, got: str | None = None) -> CheckFailed:
    detail = "" if expected is None else f" (expected {expected}, got {got})"
    return CheckFailed(CheckFailure(code, where, f"{where}: {message}{detail}", expected, got))
