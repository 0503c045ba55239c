"""Build a wheel from the sdist, install it into a clean environment, and use it there.

Run by `make wheel`. An editable install hides files that a wheel lacks; this does not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXPECTED = [
    "loraplex/py.typed",
    "loraplex/platform/app.py",
    "loraplex/platform/web/templates/base.html",
    "loraplex/platform/web/static/app.css",
    "loraplex/platform/web/static/vendor/htmx.min.js",
    "loraplex/platform/web/static/vendor/manifest.json",
    "loraplex/adapters/registry.py",
    "loraplex/engine/loop.py",
    "loraplex/kernels/cpu/library.cpp",
    "loraplex/migrations/versions/0001_initial.py",
]
SMOKE = """
import torch
from loraplex.kernels.select import choose_kernels
kernels, reason = choose_kernels(torch.device("cpu"))
print(kernels.silu_and_mul(torch.ones(1, 4)).tolist(), reason)
"""


def run(*command: str | Path, cwd: Path) -> None:
    print("$", *command, flush=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([str(part) for part in command], cwd=cwd, env=environment, check=True)


def main() -> None:
    """Exit non-zero when anything is missing from the wheel or does not work from it."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run(sys.executable, "-m", "build", "--outdir", work, ROOT, cwd=work)  # sdist, then the wheel from it
        (wheel,) = work.glob("*.whl")
        missing = set(EXPECTED) - set(zipfile.ZipFile(wheel).namelist())
        if missing:
            sys.exit(f"the wheel lacks {sorted(missing)}")
        venv.create(work / "venv", with_pip=True)
        binaries = work / "venv" / "bin"
        run(binaries / "pip", "install", "--disable-pip-version-check", "--quiet", "--no-compile", wheel, cwd=work)
        run(binaries / "loraplex", "--version", cwd=work)
        run(binaries / "loraplex", "db", "upgrade", "--data-dir", work / "data", cwd=work)
        run(binaries / "loraplex", "tenant", "create", "acme", "--data-dir", work / "data", "--json", cwd=work)
        run(binaries / "python", "-c", SMOKE, cwd=work)
    print("wheel: ok")


if __name__ == "__main__":
    main()
