"""The cache folder of built-in models."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from sb_edge.util.user_cache import cache_root


def models_folder() -> Path:
    """The folder; made if it is missing."""
    folder = cache_root() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def locked(target: Path) -> FileLock:
    """A lock for building `target`, one process at a time."""
    return FileLock(target.with_name(f".{target.name}.lock"))
