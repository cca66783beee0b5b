"""Output files: each appears under its final name only when it is complete."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sb_edge.util.errors import InferenceError, OutputError, SbEdgeError

if TYPE_CHECKING:
    import numpy as np

_WRITE_ERRORS = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EFBIG)


def require_output(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse a name that no output file can take.

    Args:
        path: name of the file to write; a regular file of this name will be replaced.
        inputs: files that must not be replaced.

    Raises:
        OutputError: `path` is a folder, a device, a FIFO or an input, or its folder does not exist.
    """
    if path.is_dir():
        raise OutputError("is a folder", path=path, expected="a file name")
    if not path.parent.is_dir():
        raise OutputError("the folder does not exist", path=path.parent, hint="create it first")
    if path.exists():
        if not path.is_file():
            raise OutputError("is not a regular file", path=path, expected="a file name")
        if any(path.samefile(file) for file in inputs):
            raise OutputError("is the input", path=path, hint="choose another name")


def require_folder(folder: Path | None) -> None:
    """Create a folder for output if needed; call this before a long measurement.

    Raises:
        OutputError: `folder` is a file, or its parent folder does not exist.
    """
    if folder is None:
        return
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError:
        raise OutputError("the folder does not exist", path=folder.parent, hint="create it first") from None
    except FileExistsError:
        raise OutputError("is a file", path=folder, expected="a folder") from None


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success sync it and rename it to `path`.

    On any exception, including Ctrl-C, the temporary file is removed and an earlier `path` is unchanged.

    Raises:
        OutputError: as `require_output`, or the folder is not writable, or the device is full.
    """
    path = Path(path)
    require_output(path)
    with _atomic(path, lambda partial: partial.replace(path)) as partial:
        yield partial


@contextmanager
def atomic_files(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success sync the files in it and move them beside `path`.

    For output in several parts whose names are not known in advance: none appears before all are complete.

    Raises:
        OutputError: as `atomic_output`, for each part.
    """
    path = Path(path)

    def publish(partial: Path) -> None:
        targets = {file: path.with_name(file.name) for file in sorted(partial.iterdir())}
        for target in targets.values():
            require_output(target)
        for file, target in targets.items():
            file.replace(target)

    require_output(path)
    with _atomic(path, publish) as partial:
        partial.mkdir()
        yield partial


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
    with _atomic(path, lambda partial: partial.replace(path)) as partial:
        partial.mkdir()
        yield partial


@contextmanager
def _atomic(path: Path, publish: Callable[[Path], object]) -> Iterator[Path]:
    """Yield a temporary name in `path`'s folder; on success sync and `publish` it, then sync the folder."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    _remove(partial)
    try:
        yield partial
        sync_tree(partial)
        publish(partial)
        _fsync(path.parent)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OutputError(
                "no space left on the device", path=path, hint="free some space or choose another folder"
            ) from error
        if error.errno in _WRITE_ERRORS:
            raise OutputError(f"cannot be written: {error.strerror or error}", path=path) from error
        raise
    finally:
        _remove(partial)


def sync_tree(path: Path) -> None:
    """Flush a file, or a folder with all its content, to the device, before a rename publishes it."""
    for entry in sorted([path, *path.rglob("*")]):
        if entry.is_file() or entry.is_dir():
            _fsync(entry)


def remove_partials(folder: Path) -> None:
    """Remove temporary files of killed processes from `folder`, to which no other process may be writing."""
    for partial in folder.glob(".*.partial-*"):
        _remove(partial)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def require_free_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to start when `folder`'s device cannot hold `needed` bytes of `what`.

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


@contextmanager
def reading_utf8(path: Path, kind: type[SbEdgeError] = InferenceError) -> Iterator[None]:
    """Turn the error of a block that decodes a file which is not UTF-8 into one of `kind`."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise kind("is not UTF-8 text", path=path, found=f"byte {error.start}") from None


def write_all(fd: int, data: bytes | np.ndarray) -> None:
    """Write every byte of `data` (one-dimensional uint8 if an array) at the descriptor's position."""
    view = memoryview(data) if isinstance(data, bytes) else data.data
    while view:
        view = view[os.write(fd, view) :]
