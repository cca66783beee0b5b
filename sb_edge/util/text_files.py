"""UTF-8 text from outside: byte order marks, pointers of git-lfs."""

from __future__ import annotations

from pathlib import Path

from sb_edge.util.errors import SbEdgeError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def decode_text(data: bytes, path: Path | str, error: type[SbEdgeError]) -> str:
    """Decode the UTF-8 content of a file, without a byte order mark.

    Args:
        data: content of the file.
        path: the file, for messages.
        error: kind of error to raise.

    Raises:
        SbEdgeError: of kind `error`: not UTF-8, or a pointer of git-lfs.
    """
    refuse_lfs_pointer(data, path, error)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error("is not UTF-8 text", path=path, found=f"byte {problem.start}") from None


def refuse_lfs_pointer(data: bytes, path: Path | str, error: type[SbEdgeError]) -> None:
    """Refuse what git-lfs leaves in place of a file that it has not fetched.

    Args:
        data: first bytes of the file, at least 40.
        path: the file, for messages.
        error: kind of error to raise.

    Raises:
        SbEdgeError: of kind `error`.
    """
    if data.startswith(_LFS_POINTER):
        raise error("is a pointer of git-lfs, not the file itself", path=path, hint="run `git lfs pull`")
