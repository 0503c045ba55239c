"""A bad upload fails alone: status, code and message for each, while a stream goes on and nothing is left behind."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
A_TENSOR = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B_TENSOR = A_TENSOR.replace("lora_A", "lora_B")


def with_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | changes))

    return change


def with_tensors(edit: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        edit(tensors)
        save_file(tensors, folder / WEIGHTS)

    return change


def with_header(edit: Callable[[dict[str, dict]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        edit(header)
        body = json.dumps(header).encode()
        body += b" " * (-len(body) % 8)
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(body)) + body + data[8 + length :])

    return change


def overlap(header: dict[str, dict]) -> None:
    """B of a module points at the bytes of A of another size."""
    names = [name for name in header if name != "__metadata__"]
    first = min(names, key=lambda name: header[name]["data_offsets"][0])
    second = max(names, key=lambda name: header[name]["data_offsets"][0])
    size = header[second]["data_offsets"][1] - header[second]["data_offsets"][0]
    start = header[first]["data_offsets"][0]
    header[second]["data_offsets"] = [start, start + size]


def beyond(header: dict[str, dict]) -> None:
    """The last tensor claims a thousand times the bytes that are there."""
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][0])
    start, end = header[last]["data_offsets"]
    header[last]["shape"][0] *= 1000
    header[last]["data_offsets"] = [start, start + 1000 * (end - start)]


def not_a_number(tensors: dict[str, np.ndarray]) -> None:
    tensors[A_TENSOR][0, 0] = np.nan


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data)


def cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


BAD_UPLOADS = {
    "pickle in disguise": (write(WEIGHTS, b"PK\x03\x04" + bytes(200)), "pickle_file", "safetensors"),
    "truncated file": (cut_short, "offsets_out_of_file", "upload"),
    "overlapping offsets": (with_header(overlap), "offsets_overlap", "save"),
    "offsets out of the file": (with_header(beyond), "offsets_out_of_file", "upload"),
    "wrong shape": (
        with_tensors(lambda tensors: tensors.update({B_TENSOR: np.ones((7, 4), np.float32)})),
        "wrong_shape",
        "q_proj",
    ),
    "missing B": (with_tensors(lambda tensors: tensors.pop(B_TENSOR)), "missing_lora_b", "q_proj"),
    "NaN": (with_tensors(not_a_number), "not_finite", "NaN"),
    "rank too large": (with_config(r=100_000), "rank_too_large", "100000"),
    "DoRA without magnitudes": (with_config(use_dora=True), "missing_lora_magnitude_vector", "lora_magnitude"),
    "a method that is not served": (with_config(peft_type="FOURIERFT"), "method_unsupported", "save_as_lora"),
    "not JSON": (write(CONFIG, b"rank: 8"), "config_not_json", "JSON"),
}


def staged(site) -> list[Path]:
    return [path for path in site.server.data_dir.rglob("staging/*") if path.is_dir()]


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("what", BAD_UPLOADS)
def test_a_bad_adapter_is_refused_with_its_reason(site, make_adapter, tmp_path, what):
    """400 `adapter_invalid`, with the failed check's own code and a message that names what is wrong."""
    spoil, code, hint = BAD_UPLOADS[what]
    folder = make_adapter(tmp_path / "adapter", rank=4, seed=9)
    spoil(folder)
    with site.server.http(site.acme) as client:
        client.post("/api/v1/adapters", json={"name": "spoilt"})
        files = {"config": (folder / CONFIG).read_bytes(), "weights": (folder / WEIGHTS).read_bytes()}
        response = client.post("/api/v1/adapters/spoilt/versions", files=files)
        versions = client.get("/api/v1/adapters/spoilt/versions").json()["data"]

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "adapter_invalid")
    failed = [check for check in error["details"] if check["code"] == code]
    assert failed, error["details"]
    assert hint.lower() in (failed[0]["message"] + failed[0]["where"]).lower()
    assert versions == []
    assert staged(site) == []


@pytest.mark.usefixtures("bystander")
def test_ten_megabytes_of_config_are_a_413(site, make_adapter, tmp_path):
    """The configuration has a bound of its own, met while it streams in."""
    folder = make_adapter(tmp_path / "adapter", rank=4, seed=9)
    with site.server.http(site.acme) as client:
        client.post("/api/v1/adapters", json={"name": "spoilt"})
        files = {"config": b" " * (10 << 20), "weights": (folder / WEIGHTS).read_bytes()}
        response = client.post("/api/v1/adapters/spoilt/versions", files=files)

    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert staged(site) == []
