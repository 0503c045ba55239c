"""A header is believed only if it describes exactly the bytes of its file."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from loraplex.adapters.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS, read_header
from loraplex.adapters.untrusted_json import MAX_CONTAINERS, CheckFailed


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_a_saved_file_is_read_in_the_order_of_its_bytes(tmp_path: Path) -> None:
    """What the safetensors library wrote is accepted, and the extents are those of the tensors."""
    path = tmp_path / "a.safetensors"
    tensors = {"b.x": torch.arange(6.0).reshape(2, 3), "a.y": torch.ones(4, dtype=torch.bfloat16)}
    save_file(tensors, path, metadata={"format": "pt"})

    infos = read_header(path)

    assert {info.name: info.shape for info in infos} == {"b.x": (2, 3), "a.y": (4,)}
    data = path.read_bytes()
    assert [info.end for info in infos][-1] == len(data)
    by_name = {info.name: data[info.start : info.end] for info in infos}
    assert by_name["b.x"] == tensors["b.x"].numpy().tobytes()


REFUSED = [
    ("truncated", b""),
    ("truncated", b"\x10\0\0\0\0\0\0\0"),
    ("truncated", file_of({"t": entry(0, 4)})[:30]),
    ("offsets_out_of_file", file_of({"t": entry(0, 8)}, bytes(4))),
    ("offsets_out_of_file", file_of({"t": entry(0, 1 << 60)}, bytes(4))),
    ("trailing_bytes", file_of({"t": entry(0, 4)}, bytes(8))),
    ("offsets_overlap", file_of({"t": entry(0, 8), "u": entry(4, 12)}, bytes(12))),
    ("offsets_hole", file_of({"t": entry(0, 4), "u": entry(8, 12)}, bytes(12))),
    ("offsets_hole", file_of({"t": entry(4, 8)}, bytes(8))),
    ("size_mismatch", file_of({"t": entry(0, 8, [1])}, bytes(8))),
    ("size_mismatch", file_of({"t": entry(0, 0, [1 << 32, 1 << 32])})),
    ("bad_shape", file_of({"t": entry(0, 4, [-1])}, bytes(4))),
    ("bad_shape", file_of({"t": entry(0, 4, [True])}, bytes(4))),
    ("bad_shape", file_of({"t": entry(0, 4, [1] * 9)}, bytes(4))),
    ("bad_offsets", file_of({"t": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4))),
    ("bad_offsets", file_of({"t": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4]}}, bytes(4))),
    ("bad_dtype", file_of({"t": entry(0, 4, [1], "I32")}, bytes(4))),
    ("bad_dtype", file_of({"t": entry(0, 4, [1], ["F32"])}, bytes(4))),
    ("bad_tensor_entry", file_of({"t": {"dtype": "F32"}})),
    ("bad_tensor_entry", file_of({"t": 1})),
    ("bad_tensor_name", file_of({"../t": entry(0, 4)}, bytes(4))),
    ("bad_tensor_name", file_of({"t\n": entry(0, 4)}, bytes(4))),
    ("bad_tensor_name", file_of({"t" * 257: entry(0, 4)}, bytes(4))),
    ("bad_metadata", file_of({"__metadata__": {"format": 1}})),
    ("bad_metadata", file_of({"__metadata__": ["format"]})),
    ("bad_metadata", file_of({"__metadata__": {"format": "\ud800"}})),
    ("misaligned", struct.pack("<Q", 65) + json.dumps({"t": entry(0, 4)}).encode().ljust(65) + bytes(4)),
    ("too_many_tensors", file_of({f"t{i}": entry(0, 0, [0]) for i in range(MAX_TENSORS + 1)})),
    ("header_duplicate_key", file_of(b'{"t": {"dtype": "F32"}, "t": {"dtype": "F32"}}')),
    ("header_not_json", file_of(b"[]")),
    ("header_not_json", file_of(b"{")),
    ("header_not_json", file_of(b'{"t": NaN}')),
    ("header_not_json", file_of(b'{"t": ' + b"9" * 5000 + b"}")),
    ("header_not_json", file_of(b'{"\xff": 1}')),
    ("header_too_deep", file_of(b'{"t": ' + b"[" * 5000 + b"]" * 5000 + b"}")),
    ("header_too_deep", file_of({"t": [[[1]]]})),
    ("header_too_deep", file_of({"t": [[]] * (MAX_CONTAINERS + 1)})),
    ("header_too_large", struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{" + bytes(100)),
    ("pickle_file", pickle.dumps({"weights": list(range(100))}, protocol=2)),
    ("pickle_file", pickle.dumps({"weights": list(range(100))}, protocol=5)),
    ("lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
]


@pytest.mark.parametrize(("code", "data"), REFUSED, ids=[f"{i}-{code}" for i, (code, _) in enumerate(REFUSED)])
def test_every_defect_has_its_code_and_a_remedy(code: str, data: bytes, tmp_path: Path) -> None:
    """A file that is not what it claims is refused with a stable code and a short message that says what to do."""
    path = tmp_path / "weights"
    path.write_bytes(data)

    with pytest.raises(CheckFailed) as refused:
        read_header(path)

    failure = refused.value.failure
    assert failure.code == code
    assert any(word in failure.message for word in ("save", "upload", "use ", "convert", "load"))
    assert len(failure.message) < 700
    failure.message.encode()


def test_torch_save_is_told_from_safetensors(tmp_path: Path) -> None:
    """What torch.save wrote is named as a pickle, with the way to convert it."""
    for zipped in (True, False):
        path = tmp_path / f"weights-{zipped}"
        torch.save({"t": torch.zeros(2)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckFailed) as refused:
            read_header(path)
        assert refused.value.failure.code == "pickle_file"
        assert "safetensors.torch.save_file" in refused.value.failure.message


def test_a_length_that_begins_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    """A genuine header of 0x280 bytes starts with the two bytes that a pickle starts with."""
    text = json.dumps({"t": entry(0, 4)}).encode().ljust(0x280)
    path = tmp_path / "weights"
    path.write_bytes(struct.pack("<Q", 0x280) + text + bytes(4))

    assert [info.name for info in read_header(path)] == ["t"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 99)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["F32", "F16"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
SIZES = st.integers(0, 6)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8"]),
        "shape": st.lists(SIZES, max_size=3),
        "data_offsets": st.lists(st.integers(-1, 24), min_size=1, max_size=3),
    }
)
HEADER = st.dictionaries(st.sampled_from(["a", "b.c", "__metadata__", "é"]), ENTRY | JSON, max_size=3)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=64) | st.builds(file_of, HEADER | st.binary(max_size=64), st.binary(max_size=24)))
@example(file_of({"a": entry(0, 4), "b.c": entry(4, 8)}, bytes(8)))
@example(file_of({"a": entry(0, 0, [0]), "b.c": entry(0, 8), "d": entry(8, 8, [0])}, bytes(8)))
def test_any_bytes_are_refused_or_readable(tmp_path: Path, data: bytes) -> None:
    """Whatever the bytes, the only exception is CheckFailed, and what is accepted the safetensors library reads."""
    path = tmp_path / "fuzzed"
    path.write_bytes(data)
    try:
        infos = read_header(path)
    except CheckFailed:
        return
    with safe_open(path, framework="pt") as file:
        assert {info.name: info.shape for info in infos} == {
            name: tuple(file.get_tensor(name).shape)
            for name in file.keys()  # noqa: SIM118 - safe_open is no mapping
        }
