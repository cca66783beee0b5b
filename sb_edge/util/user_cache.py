"""The user's cache folder, and the SHA-256 of large files remembered there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import platformdirs

from sb_edge.util.files import atomic_output
from sb_edge.util.hashes import sha256_of, sha256_of_bytes


def cache_root() -> Path:
    """`SB_EDGE_CACHE`, or the user's cache folder for sb-edge."""
    chosen = os.environ.get("SB_EDGE_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("sb-edge"))


def remembered_sha256(path: Path) -> str:
    """SHA-256 of a large file, remembered for the same size, time, inode and place.

    Raises:
        OSError: the file cannot be read.
    """
    stat = path.stat()
    identity = f"{path.resolve()} {stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}"
    memory = cache_root() / "hashes" / sha256_of_bytes(identity.encode())
    if memory.is_file():
        found = memory.read_text(encoding="ascii", errors="replace")
        if re.fullmatch(r"[0-9a-f]{64}", found):
            return found
    found = sha256_of(path)
    memory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(memory) as partial:
        partial.write_text(found, encoding="ascii")
    return found
