"""The user's cache folder, and facts about files remembered there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import platformdirs

from sb_edge.util.errors import OutputError
from sb_edge.util.files import atomic_output
from sb_edge.util.hashes import sha256_of, sha256_of_bytes

_MOST_FACTS = 256
"""The least recently used go when there are more."""


def cache_root() -> Path:
    """`SB_EDGE_CACHE`, or the user's cache folder for sb-edge."""
    chosen = os.environ.get("SB_EDGE_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("sb-edge"))


def remembered(what: str, files: Sequence[Path], find: Callable[[], str]) -> str:
    """A fact about files, remembered in the cache folder for their place, device, inode, size and time.

    Args:
        what: name of the fact and all else that it depends on.
        files: the files.
        find: finds the fact; what it raises is not remembered.

    Raises:
        OSError: a file cannot be read.
    """
    parts = [what]
    for path in files:
        stat = path.stat()
        place = f"{path.resolve()} {stat.st_dev} {stat.st_ino}"
        parts.append(f"{place} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")
    memory = cache_root() / "facts" / sha256_of_bytes("\n".join(parts).encode(errors="surrogateescape"))
    if memory.is_file():
        content, _, digest = memory.read_text(encoding="utf-8", errors="replace").rpartition("\n")
        if digest == sha256_of_bytes(content.encode(errors="replace")):
            with suppress(OSError):
                memory.touch()
            return content
    found = find()
    with suppress(OSError, OutputError):  # a cache that cannot be written to only costs time
        memory.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(memory) as partial:
            partial.write_text(f"{found}\n{sha256_of_bytes(found.encode())}", encoding="utf-8")
        facts = sorted(memory.parent.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        for forgotten in facts[:-_MOST_FACTS]:
            forgotten.unlink()
    return found


def remembered_sha256(*files: Path) -> str:
    """SHA-256 of large files, one after another; reading gigabytes again for each run would only cost time.

    Raises:
        OSError: a file cannot be read.
    """
    return remembered("sha256", files, lambda: sha256_of(*files))
