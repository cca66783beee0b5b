"""The cache folder of built-in models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from sb_edge.util.files import atomic_output
from sb_edge.util.user_cache import cache_root, remembered_sha256


def models_folder() -> Path:
    """The folder; made if it is missing."""
    folder = cache_root() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kept(target: Path, build: Callable[[], object]) -> Path:
    """The file `target`, made by `build` unless it is there as it was made.

    Its SHA-256 stands in a file beside it.
    """
    record = target.with_name(f"{target.name}.sha256")
    with locked(target):
        if not (target.is_file() and record.is_file() and record.read_text() == remembered_sha256(target)):
            build()
            with atomic_output(record) as partial:
                partial.write_text(remembered_sha256(target))
    return target


def locked(target: Path) -> FileLock:
    """A lock for building `target`, one process at a time."""
    return FileLock(target.with_name(f".{target.name}.lock"))
