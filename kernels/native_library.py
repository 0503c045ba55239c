"""Build the CPU operations in cpu/ for the machine at hand, once, and load them.

Knows compilers, instruction sets and where the built library is kept. Knows nothing of what it computes.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch as _torch  # noqa: F401  its OpenMP runtime comes first, so that the library binds to it: one thread pool

_SOURCE = Path(__file__).with_name("cpu") / "library.cpp"
_FLAGS = (
    *("-std=c++17", "-O3", "-fopenmp", "-shared", "-fPIC", "-w"),
    # What -ffast-math gives without its promise that there are no infinities: masked logits are -inf.
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
_COMPILE_SECONDS = 300

_X86_VARIANTS = {  # best first: the compiler's flags, and what /proc/cpuinfo must list for them
    "avx512-bf16": (
        ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni"),
        {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512_bf16", "avx512_vnni"},
    ),
    "avx512": (("-march=x86-64-v4",), {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}),
    "avx2": (("-march=x86-64-v3",), {"avx2", "fma", "bmi1", "bmi2", "f16c"}),
    "plain": ((), set()),
}


class NativeUnavailable(Exception):
    """The library cannot be built or loaded here; the message is the reason, with its remedy."""


def supported_variants() -> list[str]:
    """The instruction sets that this machine can run, best first; `plain` always is. Elsewhere than on x86 the
    compiler's own choice for the machine is the only one."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["plain"]
    flags = _cpu_flags()
    return [name for name, (_, needed) in _X86_VARIANTS.items() if needed <= flags]


def load_library(variant: str | None, environment: Mapping[str, str]) -> ctypes.CDLL:
    """The library for an instruction set, by default the best that runs here. Compiled if it is not in the cache.

    environment stands for os.environ: CXX, PATH, XDG_CACHE_HOME and HOME are read. Raises NativeUnavailable.
    """
    supported = supported_variants()
    if variant is not None and variant not in supported:
        raise NativeUnavailable(f"this CPU does not run {variant}; it runs {', '.join(supported)}")
    compiler = _find_compiler(environment)
    command = (*compiler, *_FLAGS, *_machine_flags(variant or supported[0]), str(_SOURCE))
    path = _cache_folder(environment) / f"native-{_fingerprint(command)}.so"
    try:
        if not path.exists():
            _compile(command, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"the compiled library {path} cannot be used: {error}") from error


def _machine_flags(variant: str) -> tuple[str, ...]:
    if platform.machine() not in ("x86_64", "AMD64"):
        return ("-mcpu=native",)
    return (*_X86_VARIANTS[variant][0], "-mtune=native")


def _cpu_flags() -> set[str]:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    return set(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def _find_compiler(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The command of a C++ compiler: what CXX says, else the first of the usual names on PATH."""
    for command in (environment.get("CXX", ""), "c++", "g++", "clang++"):
        words = shlex.split(command)
        program = shutil.which(words[0], path=environment.get("PATH", "")) if words else None
        if program:
            return program, *words[1:]
    raise NativeUnavailable("no C++ compiler was found; install g++, or name one with CXX, for several times the speed")


def _cache_folder(environment: Mapping[str, str]) -> Path:
    """A folder that no other user can write to: what lies there is loaded as code."""
    base = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME") or Path.home()) / ".cache")
    folder = Path(base) / "loraplex"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise NativeUnavailable(
            f"{folder} cannot be created ({error}); set XDG_CACHE_HOME to a folder of yours"
        ) from error
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise NativeUnavailable(
            f"others can write to {folder}; set XDG_CACHE_HOME to a folder that only you can write to"
        )
    return folder


def _fingerprint(command: tuple[str, ...]) -> str:
    """A name for what these sources, command and CPU give; a home directory may be shared by different machines."""
    try:
        version = subprocess.run([command[0], "--version"], capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NativeUnavailable(f"the C++ compiler {command[0]} does not run: {error}") from error
    sources = [path.read_bytes() for path in sorted(_SOURCE.parent.iterdir())]
    parts = (*sources, " ".join(command).encode(), version, _cpu_model())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _cpu_model() -> bytes:
    described = Path("/proc/cpuinfo")
    if not described.exists():
        return platform.processor().encode()
    telling = (b"flags", b"Features", b"model name")
    return b"\n".join(sorted({line for line in described.read_bytes().splitlines() if line.startswith(telling)}))


def _compile(command: tuple[str, ...], path: Path) -> None:
    """Build beside `path` and rename: of two processes that build at once the later one replaces equal bytes."""
    handle, partial = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=".partial", dir=path.parent)
    os.close(handle)
    try:
        result = subprocess.run([*command, "-o", partial], capture_output=True, timeout=_COMPILE_SECONDS, check=False)
        if result.returncode != 0:
            last_lines = result.stderr.decode(errors="replace").strip()[-500:]
            raise NativeUnavailable(f"{command[0]} could not compile the CPU kernels: {last_lines}")
        Path(partial).chmod(0o700)
        Path(partial).replace(path)
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailable(f"{command[0]} did not finish in {_COMPILE_SECONDS} s") from error
    finally:
        Path(partial).unlink(missing_ok=True)
