"""Writing files so that nothing half-written ever appears under its final name."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sb_edge.util.errors import OutputError

if TYPE_CHECKING:
    import numpy as np

_WRITE_ERRORS = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EFBIG)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path) -> None:
    """Bring every file under `folder` to the device, so that a rename after it never outlives the content."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            _fsync(file)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def _output_error(path: Path, error: OSError) -> OutputError:
    if error.errno == errno.ENOSPC:
        return OutputError(
            "no space left on the device", path=path, hint="free some space or choose another folder"
        )
    return OutputError(f"cannot be written: {error.strerror or error}", path=path)


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left behind in `folder`; only while no other process writes there."""
    for left in folder.glob(".*.partial-*"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success sync it and rename it to `path`.

    On any exception, Ctrl-C included, the temporary file is removed and an earlier `path` stays as it was.

    Raises:
        OutputError: the folder does not exist, is not writable, or the device is full.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError("is a folder", path=path, expected="a file name")
    if not path.parent.is_dir():
        raise OutputError("the folder does not exist", path=path.parent, hint="create it first")
    partial = _partial(path)
    try:
        yield partial
        _fsync(partial)
        partial.replace(path)
        _fsync(path.parent)
    except OSError as error:
        if error.errno in _WRITE_ERRORS:
            raise _output_error(path, error) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_files(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success sync the files in it and move them beside `path`.

    For output in several parts, whose names are known only later: none appears before all are complete.

    Raises:
        OutputError: as `atomic_output`.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError("is a folder", path=path, expected="a file name")
    if not path.parent.is_dir():
        raise OutputError("the folder does not exist", path=path.parent, hint="create it first")
    partial = _partial(path)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        sync_tree(partial)
        for file in sorted(partial.iterdir()):
            file.replace(path.with_name(file.name))
        _fsync(path.parent)
    except OSError as error:
        if error.errno in _WRITE_ERRORS:
            raise _output_error(path, error) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success sync its files and rename it to `path`.

    Raises:
        OutputError: `path` exists and is not an empty folder, or cannot be written.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError("already exists", path=path, hint="choose another name or remove it first")
    if not path.parent.is_dir():
        raise OutputError("the folder does not exist", path=path.parent, hint="create it first")
    partial = _partial(path)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        sync_tree(partial)
        partial.replace(path)
        _fsync(path.parent)
    except OSError as error:
        if error.errno in _WRITE_ERRORS:
            raise _output_error(path, error) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_free_space(folder: Path, needed: int, what: str) -> None:
    """Refuse before starting when `folder`'s device cannot hold `needed` bytes.

    Raises:
        OutputError: too little space.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"not enough space for {what}",
            path=folder,
            found=f"{free / 2**20:.0f} MiB free",
            expected=f"{needed / 2**20:.0f} MiB",
            hint="free some space or choose another folder",
        )


def write_all(fd: int, data: bytes | np.ndarray) -> None:
    """Write every byte of `data` (one-dimensional, uint8 if an array) at the descriptor's position."""
    view = memoryview(data) if isinstance(data, bytes) else data.data
    while view:
        view = view[os.write(fd, view) :]
