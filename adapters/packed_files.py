"""Packed adapters as files beside their blobs, so that only the first load of a version on a base has to pack it.

A cache: a file that is missing, cut off, or of anything else than what is asked for is made again, and one that cannot
be written (the disk is full or read-only, the blob was removed meanwhile) is done without. It is written some time
after its adapter's load, appears by one rename once its bytes are on disk, and goes with its blob.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from loraplex.adapters.blobs import StoredAdapter
from loraplex.adapters.factors import BaseWeights
from loraplex.adapters.layout import ALIGN_BYTES
from loraplex.adapters.loader_threads import loader_threads
from loraplex.adapters.types import AdapterSpec, BaseShape
from loraplex.adapters.weights import PackedAdapter, layout_of, load_packed

_logger = logging.getLogger(__name__)

LAYOUT_VERSION = "2"
"""Of what `layout.plan_layout` lays out: change it with the layout, and older files are no longer read."""

PAUSE_SECONDS = 0.002
"""After each site that is packed while steps run: a load then takes about a tenth of a core for a while, and not all of
one at once, for which every operation of a step would have to wait."""

WRITE_INTERVAL_SECONDS = 1.0
"""Between two files, and between an adapter's load and its file: nobody waits for a file, and writing one would slow
down the very request that its adapter was loaded for."""

MAX_UNWRITTEN = 16
"""Packed adapters that wait to be written: a bound on the host memory they hold. In a rush the others are left to
their next load."""

_DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}


class PackedFiles:
    """Packed adapters of one base in one dtype. Any thread may call it."""

    def __init__(
        self,
        shape: BaseShape,
        dtype: torch.dtype,
        *,
        base: BaseWeights | None = None,
        pin_memory: bool = False,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """base: for adapters that cannot be packed without it. pin_memory: put weights where a GPU can fetch them
        beside other work. Else they are the mapped file. is_busy: whether steps run now, so that packing is to be
        spread over time."""
        self._shape = shape
        self._dtype = dtype
        self._pin_memory = pin_memory
        self._is_busy = is_busy
        self._base = base
        self._writer = loader_threads(1, "packed-files")
        self._unwritten = threading.BoundedSemaphore(MAX_UNWRITTEN)
        self._hurry = threading.Event()
        self._closing = threading.Event()

    def load(self, digest: str, stored: StoredAdapter) -> PackedAdapter:
        """From its packed file; or packed now, and the file is written later. Raises AdapterUnavailable as
        `load_packed` does."""
        metadata = self._metadata(digest, stored.spec)
        name = f"packed-{str(self._dtype).removeprefix('torch.')}-{metadata['base'][:16]}.safetensors"
        path = stored.weights_path.with_name(name)
        packed = self._read(path, metadata, stored.spec)
        has_file = packed is not None
        if packed is None:
            packed = load_packed(stored, self._shape, self._dtype, base=self._base, pause=self._pause)
        if self._pin_memory:
            packed = replace(packed, weights=packed.weights.pin_memory())
        if not has_file and self._unwritten.acquire(blocking=False):
            self._writer.submit(self._write_later, path, metadata, packed)
        return packed

    def flush(self) -> None:
        """Write now what waits to be written."""
        self._hurry.set()
        self._writer.submit(lambda: None).result()
        self._hurry.clear()

    def close(self) -> None:
        """Drop what has not been written; the next load packs it again."""
        self._closing.set()
        self._hurry.set()
        self._writer.shutdown(wait=True, cancel_futures=True)

    def _pause(self) -> None:
        if self._is_busy():
            time.sleep(PAUSE_SECONDS)

    def _write_later(self, path: Path, metadata: dict[str, str], packed: PackedAdapter) -> None:
        self._hurry.wait(WRITE_INTERVAL_SECONDS)
        try:
            if not self._closing.is_set():
                self._write(path, metadata, packed)
        finally:
            self._unwritten.release()

    def _metadata(self, digest: str, spec: AdapterSpec) -> dict[str, str]:
        """All that the file's content depends on."""
        base = self._shape.digest
        if spec.depends_on_base and self._base is not None:
            base = hashlib.sha256(f"{base} {self._base.fingerprint}".encode()).hexdigest()
        return {"layout": LAYOUT_VERSION, "adapter": digest, "base": base, "dtype": str(self._dtype)}

    def _read(self, path: Path, metadata: dict[str, str], spec: AdapterSpec) -> PackedAdapter | None:
        """None if there is no file. One that is not exactly what is asked for is removed; its size is checked."""
        try:
            with safe_open(path, framework="pt") as file:
                if file.metadata() != metadata:
                    raise SafetensorError("it is another adapter's, or another version's")
                weights, table = file.get_tensor("weights"), file.get_tensor("table").clone()
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            _logger.warning("packed file %s cannot be used and is made again: %s", path, error)
            with suppress(OSError):
                path.unlink()
            return None
        if not spec.has_vocabulary:
            return PackedAdapter(weights, table)
        return PackedAdapter(weights, table, layout_of(spec, self._shape, self._dtype, self._base).vocabulary)

    def _write(self, path: Path, metadata: dict[str, str], packed: PackedAdapter) -> None:
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            with part.open("xb") as file:
                file.write(_header(packed, metadata))
                file.write(_bytes(packed.weights))
                file.write(_bytes(packed.table))
                file.flush()
                os.fsync(file.fileno())
            part.chmod(0o444)
            part.rename(path)
        except OSError as error:
            _logger.warning("packed file %s cannot be written: %s", path, error)
            with suppress(OSError):
                part.unlink()


def _header(packed: PackedAdapter, metadata: dict[str, str]) -> bytes:
    """Of a safetensors file, for the weights and then the table. The weights begin at a multiple of ALIGN_BYTES.

    Written here because safetensors' own writer keeps Python's lock, and so the step loop, for milliseconds.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for name, tensor in (("weights", packed.weights), ("table", packed.table)):
        end = start + tensor.nbytes
        header[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGN_BYTES)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.flatten().view(torch.uint8).numpy().data
