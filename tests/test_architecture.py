"""The house rules that no linter knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("platform", "adapters", "engine", "kernels", "migrations")


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_are_namespaces(folder):
    """No __init__.py anywhere: in platform/ it would shadow Python's own module of that name."""
    assert list((ROOT / folder).rglob("__init__.py")) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_import_package_links_to_the_folders(folder):
    """src/loraplex holds a relative link to each folder."""
    link = ROOT / "src" / "loraplex" / folder

    assert link.readlink() == Path("..") / ".." / folder
    assert link.resolve() == ROOT / folder


def test_pythons_own_platform_module_is_found_from_the_root():
    """With the repository's root as the working directory, `import platform` is the standard library's."""
    code = "import platform, uuid; print(platform.system())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip()


def test_the_api_process_imports_no_torch():
    """Importing the whole server loads neither torch nor transformers."""
    modules = "loraplex.platform.server, loraplex.platform.cli.serve, loraplex.platform.cli.main"
    code = f"import sys, {modules}; print({{'torch', 'transformers'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_the_architecture_page_names_every_file():
    """A line per file, and no line for a file that is gone: under the heading of its folder."""
    page = (ROOT / "ARCHITECTURE.md").read_text().split("## Files")[1]
    listed = []
    for part in page.split("### ")[1:]:
        folder = part.split("/", 1)[0]
        listed += [f"{folder}/{line.split('`')[1]}" for line in part.splitlines() if line.startswith("| `")]
    files = [
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".h")
    ]

    assert sorted(listed) == sorted(files)
