"""Output files: each appears under its final name only when it is complete."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sb_edge.util.errors import OutputError
from sb_edge.util.hashes import sha256_of_bytes

if TYPE_CHECKING:
    import numpy as np

Check = Callable[[Path], object]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_WRITE_ERRORS = (*_NO_SPACE, errno.EACCES, errno.EROFS, errno.EFBIG, errno.EIO)
_TEMPORARY = re.compile(r"\..*\.partial-(\d+)-(\d+)-([0-9a-f]{12})-\d+", re.DOTALL)
_serial = itertools.count()
_DESCRIPTOR = re.compile(r"/proc/\d+(/task/\d+)?/fd")
_NAME_BYTES = 150  # of 255; the rest is for the identity of the process
_FOREIGN_AGE = 86400.0
"""Seconds after which a temporary file of another host, container or boot counts as abandoned."""


def require_output(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse a name that no output file can take.

    Args:
        path: name of the file to write. A regular file is replaced, and so is the target of a symbolic link;
            a character device or a FIFO is written to.
        inputs: files that must not be replaced, under whatever name.

    Raises:
        OutputError: `path` is a folder, a block device, a socket or an input, or its folder does not exist or
            is read-only.
    """
    target, found = _destination(path)
    if found is None:
        folder = target.parent if path.is_symlink() else path.parent
        if not folder.is_dir():
            raise OutputError("the folder does not exist", path=folder, hint="create it first")
    elif stat.S_ISDIR(found.st_mode):
        raise OutputError("is a folder", path=path, expected="a file name")
    elif not stat.S_ISREG(found.st_mode):
        if not _is_stream(found):
            raise OutputError("is not a regular file, a character device or a FIFO", path=path)
        return
    elif _DESCRIPTOR.fullmatch(os.path.realpath(path.parent)) or str(path) in ("/dev/stdout", "/dev/stderr"):
        raise OutputError("is open in this process", path=path, hint="give the file's own name")
    elif any(os.path.samestat(found, each.stat()) for each in inputs if each.exists()):
        raise OutputError("is the input", path=path, hint="choose another name")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise OutputError(
            "the folder is not writable",
            path=target.parent,
            found=error.strerror,
            hint="choose another folder",
        ) from None


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
def atomic_output(path: Path, *, inputs: Iterable[Path] = (), check: Check | None = None) -> Iterator[Path]:
    """Yield a temporary name; on success sync the file and rename it to `path`, or copy it to a stream.

    On any exception, including Ctrl-C, the temporary file is removed and an earlier `path` is unchanged.

    Args:
        path, inputs: as for `require_output`.
        check: called with the synced temporary file before it takes the name; reads it back and raises if it
            differs from the data written.

    Raises:
        OutputError: as `require_output`, or the folder is not writable, or the device is full.
    """
    path, known = Path(path), list(inputs)
    require_output(path, known)

    def publish(partial: Path) -> None:
        if check is not None:
            check(partial)
        require_output(path, known)
        _publish(partial, path)

    with _atomic(path, _place(path), publish) as partial:
        yield partial


@contextmanager
def atomic_files(path: Path, *, check: Check | None = None) -> Iterator[Path]:
    """Yield a temporary folder; on success sync the files in it and move them beside `path`.

    For output in several parts whose names are not known in advance: either all appear or none does.

    Args:
        path: name of the output, in whose folder the parts appear.
        check: as for `atomic_output`, called for each file.

    Raises:
        OutputError: as `atomic_output`, for each part.
    """
    path = Path(path)

    def publish(partial: Path) -> None:
        targets = {file: path.with_name(file.name) for file in sorted(partial.iterdir())}
        for file, target in targets.items():
            if check is not None:
                check(file)
            require_output(target)
        with _restored_on_error(targets.values(), partial):
            for file, target in targets.items():
                _publish(file, target)

    require_output(path)
    with _atomic(path, _place(path), publish) as partial:
        partial.mkdir()
        yield partial


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success sync its files and rename it to `path`.

    Raises:
        OutputError: `path` exists and is not an empty folder, or cannot be written.
    """
    path = Path(path)
    target, found = _destination(path)
    if found is not None and (not stat.S_ISDIR(found.st_mode) or any(target.iterdir())):
        raise OutputError("already exists", path=path, hint="choose another name or remove it first")
    if not target.parent.is_dir():
        raise OutputError("the folder does not exist", path=target.parent, hint="create it first")
    with _atomic(path, target, lambda partial: partial.replace(target)) as partial:
        partial.mkdir()
        yield partial


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, for the making of it, and remove it.

    Raises:
        OutputError: the folder is not writable, or the device is full.
    """
    with _atomic(path, _place(path), lambda _: None) as partial:
        partial.mkdir()
        yield partial


def _destination(path: Path) -> tuple[Path, os.stat_result | None]:
    """The file that `path` names once symbolic links are followed, and its state; None: it does not exist."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return Path(os.path.realpath(path)), None
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", path=path) from None
    # Links to descriptors (/dev/stdout, /dev/fd/N) lead to no name.
    return (path if _is_stream(found) else Path(os.path.realpath(path))), found


def _is_stream(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) or stat.S_ISFIFO(found.st_mode)


def _place(path: Path) -> Path:
    """The file beside which output for `path` is gathered; a device has no room beside it."""
    target, found = _destination(path)
    is_stream = found is not None and _is_stream(found)
    return Path(tempfile.gettempdir(), target.name) if is_stream else target


def _publish(partial: Path, path: Path) -> None:
    """Give the complete file its name, or copy it to the stream of that name."""
    target, found = _destination(path)
    if found is None:
        partial.replace(target)
    elif _is_stream(found):
        _copy_to_stream(partial, target)
    else:
        partial.chmod(stat.S_IMODE(found.st_mode))
        partial.replace(target)


def _copy_to_stream(partial: Path, stream: Path) -> None:
    fd = os.open(stream, os.O_WRONLY)
    try:
        with partial.open("rb") as source:
            while chunk := source.read(1 << 20):
                write_all(fd, chunk)
    finally:
        os.close(fd)


@contextmanager
def _restored_on_error(targets: Iterable[Path], folder: Path) -> Iterator[None]:
    """Put back earlier files, or their absence, if not all targets can be replaced."""
    earlier: dict[Path, Path | None] = {}
    for number, path in enumerate(targets):
        target, found = _destination(path)
        if found is None:
            earlier[target] = None
        elif stat.S_ISREG(found.st_mode):
            with suppress(OSError):  # a file system without links
                os.link(target, folder / f".earlier-{number}")
                earlier[target] = folder / f".earlier-{number}"
    try:
        yield
    except BaseException:
        for target, kept in earlier.items():
            if kept is None:
                target.unlink(missing_ok=True)
            else:
                kept.replace(target)
        raise


@contextmanager
def _atomic(path: Path, target: Path, publish: Check) -> Iterator[Path]:
    """Yield a temporary name beside `target`; on success sync and `publish` it, then sync the folder."""
    remove_abandoned(target.parent)
    partial = target.with_name(_temporary_name(target.name))
    try:
        yield partial
        try:
            sync_tree(partial)
            publish(partial)
            _fsync(target.parent)
        except OSError as error:
            raise _output_error(error, path) from error
    except OSError as error:
        # An error that names another file is that file's, such as an input that cannot be read.
        is_ours = str(error.filename).startswith(str(partial))
        if is_ours or (error.filename is None and error.errno in _WRITE_ERRORS):
            raise _output_error(error, path) from error
        raise
    finally:
        _remove(partial)


def _output_error(error: OSError, path: Path) -> OutputError:
    if error.errno in _NO_SPACE:
        return OutputError(
            "no space left on the device", path=path, hint="free some space or choose another folder"
        )
    return OutputError(f"cannot be written: {error.strerror or error}", path=path)


def _temporary_name(name: str) -> str:
    short = os.fsencode(name)[:_NAME_BYTES].decode(errors="ignore")
    return f".{short}.partial-{os.getpid()}-{_start_of(os.getpid()) or 0}-{_here()}-{next(_serial)}"


def _start_of(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None: it does not exist (any more)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name of the program, in parentheses, may contain anything.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _here() -> str:
    """What process numbers are valid in: host, boot and container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return sha256_of_bytes("\n".join(parts).encode())[:12]


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files from `folder` whose processes are gone."""
    try:
        found = [_TEMPORARY.fullmatch(name) for name in os.listdir(folder)]  # noqa: PTH208
    except OSError:
        return  # the write itself reports it
    for match in filter(None, found):
        if _is_abandoned(folder / match[0], match):
            _remove(folder / match[0])


def _is_abandoned(partial: Path, found: re.Match[str]) -> bool:
    if found[3] == _here():
        return _start_of(int(found[1])) != int(found[2])
    try:
        return time.time() - partial.lstat().st_mtime > _FOREIGN_AGE
    except OSError:
        return False


def sync_tree(path: Path) -> None:
    """Flush a file, or a folder with all its content, to the device, before a rename publishes it."""
    for entry in sorted([path, *path.rglob("*")]):
        if entry.is_file() or entry.is_dir():
            _fsync(entry)


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


def write_all(fd: int, data: bytes | np.ndarray) -> None:
    """Write every byte of `data` (one-dimensional uint8 if an array) at the descriptor's position."""
    view = memoryview(data) if isinstance(data, bytes) else data.data
    while view:
        view = view[os.write(fd, view) :]
