"""The control groups of this process, read from the kernel's files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Group:
    """A control group: its folder and the version of its hierarchy, 1 or 2."""

    folder: Path
    version: int

    def text(self, name: str) -> str:
        """Content of a file of the group; "" if it does not exist."""
        file = self.folder / name
        return file.read_text(encoding="ascii").strip() if file.is_file() else ""

    def number(self, name: str) -> int | None:
        """Number in a file; None if it is "max" or -1, or the file does not exist."""
        text = self.text(name)
        return int(text) if text.isdigit() else None


def groups(controller: str, root: Path) -> Iterator[Group]:
    """The groups of this process under a controller, from the innermost to the outermost.

    Args:
        controller: "memory" or "cpu".
        root: folder in which `proc` and `sys` are mounted.
    """
    own = root / "proc/self/cgroup"
    if not own.is_file():
        return
    mount = root / "sys/fs/cgroup"
    for line in own.read_text(encoding="utf-8", errors="replace").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            version, base = 2, mount
        elif controller in controllers.split(","):
            version, base = 1, mount / controller
        else:
            continue
        # Inside a container the group is mounted as the root; ".." leads outside the mount.
        inside = PurePosixPath(*(part for part in group.split("/") if part not in ("", "..")))
        for folder in (inside, *inside.parents):
            yield Group(base / folder, version)
