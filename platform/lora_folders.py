"""A PEFT folder on this server's disk, as the next version of an adapter; and which folders a request may name.

What a request names is judged as text first, then with all symbolic links followed; what is opened is what was judged.
Knows files and how they are published. Knows no name, no tenant's key and no request.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread

from loraplex.adapters.audit import Actor
from loraplex.adapters.blobs import ADAPTER_FILES, CONFIG_FILE, PROMPT_FILES, WEIGHTS_FILE, Staging
from loraplex.adapters.errors import AdapterExists
from loraplex.adapters.registry import VersionInfo
from loraplex.platform.errors import ApiError
from loraplex.platform.publishing import max_file_bytes, publish_staged, require_served, validate_now
from loraplex.platform.services import Services

ANYWHERE = (Path("/"),)
"""For folders that the operator named on the command line."""

BLOCK_BYTES = 1 << 20


class FileMissing(ApiError):
    """A folder below an allowed directory has no such file."""


async def publish_folder(
    services: Services, folder: Path, allowed: Sequence[Path], tenant_id: str, name: str, by: Actor
) -> VersionInfo:
    """The folder's bytes as a version of the adapter `name`, which is made if need be, run once like any upload: ready,
    or validating while the engine has no time.

    allowed: directories, one of which the folder's files must lie below. Raises ApiError for files that are elsewhere,
    missing or too large; InvalidName, AdapterInvalid; VersionNotReady for bytes that are quarantined.
    """
    with services.blobs.stage() as staging:
        sha256 = await to_thread.run_sync(_stage, folder, allowed, staging, max_file_bytes(services))
        with suppress(AdapterExists):
            await services.registry.create_adapter(tenant_id, name, services.base_model_name, by=by)
        await require_served(services, tenant_id, name)
        version = await publish_staged(services, staging, tenant_id, name, sha256, by)
    return await validate_now(services, version)


@contextmanager
def open_adapter_files(folder: Path, allowed: Sequence[Path]) -> Iterator[dict[str, BinaryIO]]:
    """The configuration and the weights, open for reading, by file name. Raises ApiError."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(_open_allowed(folder, name, allowed)) for name in ADAPTER_FILES}


def _stage(folder: Path, allowed: Sequence[Path], staging: Staging, limits: Mapping[str, int]) -> str:
    """Copy the files to staging, those of text where there are some; the SHA-256 of the weights."""
    for name in PROMPT_FILES:
        with suppress(FileMissing), _open_allowed(folder, name, allowed) as file:
            _copy(file, staging.path(name), limits[name])
    with open_adapter_files(folder, allowed) as files:
        _copy(files[CONFIG_FILE], staging.path(CONFIG_FILE), limits[CONFIG_FILE])
        return _copy(files[WEIGHTS_FILE], staging.path(WEIGHTS_FILE), limits[WEIGHTS_FILE])


def _copy(source: BinaryIO, target: Path, max_bytes: int) -> str:
    sha256, copied = hashlib.sha256(), 0
    with target.open("xb") as file:
        while block := source.read(BLOCK_BYTES):
            copied += len(block)
            if copied > max_bytes:
                message = f"{target.name} is larger than {max_bytes} bytes, which is the most this server accepts."
                raise ApiError(413, "adapter_too_large", message, param="lora_path")
            sha256.update(block)
            file.write(block)
    return sha256.hexdigest()


def _open_allowed(folder: Path, name: str, allowed: Sequence[Path]) -> BinaryIO:
    # Nothing outside is looked at before the text of the path has passed, so that no answer tells what is there.
    path = Path(os.path.normpath(folder.absolute() / name))
    if not any(path.is_relative_to(directory) for directory in allowed):
        raise _outside()
    try:
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(os.path.realpath(directory)) for directory in allowed):
            raise _outside()
        return open_without_links(real)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the path
        message = f"There is no folder with an {name} at this path; save the adapter with PEFT's save_pretrained()."
        raise FileMissing(404, "lora_path_not_found", message, param="lora_path") from error
    except OSError as error:
        message = f"{name} cannot be read: {error.strerror}."
        raise ApiError(400, "lora_path_unreadable", message, param="lora_path") from error


def open_without_links(path: Path) -> BinaryIO:
    """A regular file by a path without symbolic links: one that was put there since it was resolved fails the call."""
    directory = os.open("/", os.O_PATH)
    try:
        for part in path.parts[1:-1]:
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            os.close(directory)
            directory = inner
        # Not blocking, for a pipe would wait for its writer.
        file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    finally:
        os.close(directory)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileNotFoundError(path)
    return os.fdopen(file, "rb")


def _outside() -> ApiError:
    message = "This path is not below any of the directories that the server's setting `lora_dirs` allows."
    return ApiError(403, "lora_path_not_allowed", message, param="lora_path")
