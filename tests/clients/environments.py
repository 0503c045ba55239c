"""One environment for each client, with the versions that are pinned beside this file.

Knows pip and npm. Nothing is resolved: a requirements file lists all that an environment has.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = (ROOT / ".cache").resolve() / "clients"
"""Resolved, since scripts of environments name their own place, and npm does not find itself behind a link."""

AT_ONCE = 3
STAMP = ".made-of"


@dataclass(frozen=True)
class Client:
    """A program that others wrote. script: what checks it; package: as its registry names it.

    borrows_torch: it imports torch, of which a registry's build may bring gigabytes for GPUs; it gets development's.
    """

    package: str
    script: str
    borrows_torch: bool = False

    @property
    def is_npm(self) -> bool:
        return self.script.endswith(".mjs")

    @property
    def folder(self) -> Path:
        return FOLDER / (f"{self.package}-npm" if self.is_npm else self.package)

    @property
    def pins(self) -> Path:
        return HERE / (f"{self.package}_npm/package-lock.json" if self.is_npm else f"requirements/{self.package}.txt")

    @property
    def version(self) -> str:
        if self.is_npm:
            return str(json.loads(self.pins.read_text())["packages"][f"node_modules/{self.package}"]["version"])
        pinned = dict(line.split("==") for line in self.pins.read_text().splitlines() if "==" in line)
        return pinned[self.package]

    @property
    def command(self) -> list[str]:
        if self.is_npm:
            return ["node", str(self.folder / self.script)]
        return [str(self.folder / "bin" / "python"), str(HERE / self.script)]

    def make(self) -> None:
        """Anew where pins or Python have changed, else nothing. Raises CalledProcessError with the output."""
        made_of = hashlib.sha256(self.pins.read_bytes() + f"{sys.prefix} {sys.version}".encode()).hexdigest()
        stamp = self.folder / STAMP
        if not (stamp.exists() and stamp.read_text() == made_of):
            shutil.rmtree(self.folder, ignore_errors=True)
            self._install_npm() if self.is_npm else self._install_python()
            stamp.write_text(made_of)
        if self.is_npm:  # node looks for packages from where the script is
            shutil.copy(HERE / f"{self.package}_npm" / self.script, self.folder)

    def _install_python(self) -> None:
        run(sys.executable, "-m", "venv", str(self.folder))
        # --no-deps: what a pin's own requirements would add is either in the file or left out on purpose
        options = ["--quiet", "--no-compile", "--no-deps", "--disable-pip-version-check"]
        run(str(self.folder / "bin" / "pip"), "install", *options, "--requirement", str(self.pins))
        if self.borrows_torch:
            torch = importlib.util.find_spec("torch")
            assert torch is not None
            assert torch.origin is not None
            (site_packages,) = self.folder.glob("lib/python*/site-packages")
            # read after the environment's own packages, which win
            (site_packages / "torch-of-development.pth").write_text(f"{Path(torch.origin).parents[1]}\n")

    def _install_npm(self) -> None:
        self.folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(self.pins.parent / name, self.folder)
        run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(self.folder))


def run(*command: str) -> None:
    subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ)


def make_all(clients: list[Client], console: Console) -> None:
    """Several at once, with a bar. Raises SystemExit with the output of the first that could not be made."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(AT_ONCE) as threads:
        task = progress.add_task("Environments", total=len(clients))
        jobs = {threads.submit(client.make): client for client in clients}
        for job in as_completed(jobs):
            client = jobs[job]
            try:
                job.result()
            except subprocess.CalledProcessError as error:
                threads.shutdown(cancel_futures=True)
                raise SystemExit(f"The environment of {client.package} could not be made:\n{error.stdout}") from error
            progress.console.print(f"  {client.package} {client.version}")
            progress.advance(task)
