"""Input files: regular ones, whose failures name them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sb_edge.util.errors import SbEdgeError
from sb_edge.util.text_files import decode_text


@contextmanager
def open_input(path: Path, error: type[SbEdgeError]) -> Iterator[BinaryIO]:
    """Open a file for reading; a FIFO or a device, which may never end, is refused.

    Args:
        path: the file.
        error: kind of error to raise.

    Raises:
        SbEdgeError: of kind `error`: not a regular file.
        OSError: cannot be opened or read; names the file.
    """
    try:
        # A FIFO without a writer would block.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            os.close(fd)
            message = "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
            raise error(message, path=path, expected="a file")
        with open(fd, "rb") as file:  # noqa: PTH123
            yield file
    except OSError as problem:
        if problem.filename is None and problem.errno is not None:
            problem.filename = str(path)
        raise


def read_input(path: Path, error: type[SbEdgeError]) -> bytes:
    """The content of a regular file; errors as for `open_input`."""
    with open_input(path, error) as file:
        return file.read()


def read_text_input(path: Path, error: type[SbEdgeError]) -> str:
    """The text of a UTF-8 file; errors as for `open_input` and `decode_text`."""
    return decode_text(read_input(path, error), path, error)
