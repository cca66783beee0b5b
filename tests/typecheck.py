"""Run mypy on the package as it is installed.

At the top of the repository mypy would see three files and pass: the folders convert/, quant/, bench/ and
patches/ are subpackages only by their mapping in pyproject.toml. So the mapping is laid out as links first.
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


def lay_out() -> None:
    """Make build/types/sb_edge, a folder of links that has the package's installed shape."""
    shutil.rmtree(MAPPED, ignore_errors=True)
    package = MAPPED / "sb_edge"
    package.mkdir(parents=True)
    for entry in (ROOT / "sb_edge").iterdir():
        (package / entry.name).symlink_to(entry)
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    for name, folder in folders.items():
        if name != "sb_edge":
            (package / name.removeprefix("sb_edge.")).symlink_to(ROOT / folder)


def main() -> int:
    lay_out()
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "sb_edge"]
    return subprocess.run(
        command, env={**os.environ, "MYPYPATH": str(MAPPED)}, cwd=MAPPED, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
