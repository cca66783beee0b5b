"""Run mypy on the package as it is installed.

At the top of the repository mypy would see three files and pass: the folders convert/, quant/, bench/ and
patches/ are subpackages only by their mapping in pyproject.toml. So the mapping is laid out as links first.
The import contract is checked in the same tree.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ROOT / "build" / "types"


def lay_out(tree: Path, *, copy: bool = False) -> None:
    """Replace `tree` by a folder whose sb_edge has the package's installed shape, as links or copies."""
    shutil.rmtree(tree, ignore_errors=True)
    package = tree / "sb_edge"
    package.mkdir(parents=True)
    entries = {entry.name: entry for entry in (ROOT / "sb_edge").iterdir() if entry.name != "__pycache__"}
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    entries |= {name.removeprefix("sb_edge."): ROOT / folder for name, folder in folders.items()}
    del entries["sb_edge"]
    for name, entry in entries.items():
        if not copy:
            (package / name).symlink_to(entry)
        elif entry.is_dir():
            shutil.copytree(entry, package / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(entry, package / name)


def main() -> int:
    lay_out(MAPPED)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "sb_edge"]
    return subprocess.run(
        command, env={**os.environ, "MYPYPATH": str(MAPPED)}, cwd=MAPPED, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
