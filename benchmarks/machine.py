"""Where a figure comes from: the machine, the interpreter, the commit.

Only `environment` needs more than the standard library.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def machine() -> dict[str, str]:
    """What every result carries; `commit` ends in "+" when the tree held changes that were not committed."""
    return {
        "device": cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "commit": commit(),
    }


def environment() -> dict[str, str]:
    """Of a figure that torch computes in this process."""
    import torch

    gpu = {"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return machine() | gpu | {"threads": str(torch.get_num_threads()), "torch": torch.__version__}


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def commit() -> str:
    """The commit of the working tree that holds this file, or "unknown" outside of one."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{head}{'+' if changed else ''}" if head else "unknown"


def slug(device: str) -> str:
    """A device's name as part of a file name."""
    return "-".join("".join(c if c.isalnum() else " " for c in device.lower()).split())


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:  # a machine without git
        return ""
