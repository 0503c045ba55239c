"""Send an adapter's files to a running server, and go on where that broke off: in the same run or in a later one.

Knows the endpoints of uploads. What was announced before is found again by the adapter and the files' SHA-256.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import httpx
from rich.progress import Progress, TaskID

from loraplex.platform.cli.remote import call, decode, error_code, refusal
from loraplex.platform.cli.transfers import transfer_progress

UPLOADS = "/api/v1/uploads"
FILES = ("adapter_config.json", "adapter_model.safetensors")
PROMPT_FILES = ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json")
"""Those that are there go with the adapter, which is then served with its chat template and its added tokens."""

BLOCK_BYTES = 256 << 10

MAX_FAILURES = 8
"""In a row, with no byte more at the server. Their pauses last two minutes: longer than a server takes to notice that a
connection is dead."""

MAX_PAUSE_SECONDS = 30.0

PASSING = frozenset({408, 429, 502, 503, 504})
PASSING_CODES = frozenset({"upload_busy", "upload_offset_mismatch", "idempotency_key_in_use"})
"""Answers that will be others when the request is sent again later."""

Pause = Callable[[float], None]


def upload(client: httpx.Client, folder: Path, name: str, pause: Pause = time.sleep) -> dict[str, Any]:
    """The version of the adapter `name` that the folder's files are now; with a progress bar on stderr.

    Raises click.ClickException; what was sent by then need not be sent again.
    """
    prompting = [file for file in PROMPT_FILES if (folder / file).is_file()]
    files = [_announced(folder / file) for file in (*FILES, *prompting)]
    found = _unfinished(client, name, files) or _open(client, name, files, pause)
    version: dict[str, Any] | None = found["version"]
    if version is not None:
        return version
    with transfer_progress() as progress:
        for file in found["files"]:
            sending = _Sending(client, found["id"], file, folder / file["name"], progress)
            _require_success(_persist(sending, pause, sending.reached))
    return _complete(client, found["id"], pause)


class _Sending:
    """A file on its way; each call sends what the server says is missing."""

    def __init__(
        self, client: httpx.Client, upload_id: str, file: dict[str, Any], path: Path, progress: Progress
    ) -> None:
        self._offset = 0
        self._client = client
        self._upload = f"{UPLOADS}/{upload_id}"
        self._file = file
        self._path = path
        self._progress = progress
        self._task: TaskID = progress.add_task(file["name"], total=file["size_bytes"])

    def reached(self) -> int:
        """Bytes that the server had when it was last asked."""
        return self._offset

    def __call__(self) -> httpx.Response:
        looked = self._client.get(self._upload)
        if looked.is_error:
            return looked
        files = {file["name"]: file for file in decode(looked.content)["files"]}
        self._offset = files[self._file["name"]]["offset"]
        self._progress.update(self._task, completed=self._offset)
        missing_bytes = self._file["size_bytes"] - self._offset
        if missing_bytes == 0:
            return looked
        headers = {
            "content-type": "application/offset+octet-stream",
            "content-length": str(missing_bytes),
            "upload-offset": str(self._offset),
        }
        url = f"{self._upload}/files/{self._file['name']}"
        return self._client.patch(url, headers=headers, content=self._rest(missing_bytes))

    def _rest(self, missing_bytes: int) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while block := file.read(min(BLOCK_BYTES, missing_bytes)):
                missing_bytes -= len(block)
                yield block
                self._progress.update(self._task, advance=len(block))


def _announced(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "size_bytes": path.stat().st_size, "sha256": sha256}


def _unfinished(client: httpx.Client, name: str, files: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The upload of these files that an earlier run began."""
    for found in call(client, "GET", UPLOADS)["data"]:
        known = [{key: file[key] for key in ("name", "size_bytes", "sha256")} for file in found["files"]]
        if found["adapter"] == name and known == files:
            return dict(found)
    return None


def _open(client: httpx.Client, name: str, files: list[dict[str, Any]], pause: Pause) -> dict[str, Any]:
    headers, body = {"idempotency-key": uuid.uuid4().hex}, {"adapter": name, "files": files}
    response = _persist(lambda: client.post(UPLOADS, json=body, headers=headers), pause)
    return dict(decode(_require_success(response).content))


def _complete(client: httpx.Client, upload_id: str, pause: Pause) -> dict[str, Any]:
    """The version. The server's refusal of the files is final: it need not keep them."""
    response = _persist(lambda: client.post(f"{UPLOADS}/{upload_id}/complete"), pause)
    if response.status_code == httpx.codes.BAD_REQUEST:
        with suppress(httpx.HTTPError):
            client.delete(f"{UPLOADS}/{upload_id}")
    return dict(decode(_require_success(response).content))


def _persist(
    send: Callable[[], httpx.Response], pause: Pause, reached: Callable[[], int] = lambda: 0
) -> httpx.Response:
    """Send until there is an answer that will stay the same; MAX_FAILURES in a row that `reached` nothing more are
    too many. Raises click.ClickException then."""
    failures, best = 0, 0
    while True:
        try:
            response = send()
            if response.is_success or not _will_pass(response):
                return response
            problem = refusal(response).message
        except httpx.TransportError as error:
            problem = str(error) or type(error).__name__
        if reached() > best:
            failures, best = 0, reached()
        if failures == MAX_FAILURES:
            raise click.ClickException(f"{problem}. Run the command again later: it goes on where it broke off")
        seconds = min(2.0**failures, MAX_PAUSE_SECONDS)
        click.echo(f"{problem}; trying again in {seconds:.0f} s", err=True)
        pause(seconds)
        failures += 1


def _will_pass(response: httpx.Response) -> bool:
    if error_code(response) in PASSING_CODES:
        return True
    return response.status_code in PASSING and response.headers.get("x-should-retry") != "false"


def _require_success(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        raise refusal(response)
    return response
