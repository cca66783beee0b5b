"""Recorded logits: an .npz file with `input_ids` [T] int32 and `logits` [T, vocab] float32 of a prompt.

The file is untrusted input: nothing is unpickled, and sizes are checked before arrays are unpacked.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from sb_edge.util.errors import ParityError
from sb_edge.util.input_files import open_input

HEADER_BYTES = 4096
"""Maximum size of an .npy header; plain arrays need 128 bytes."""

# Errors of zipfile and of numpy's header parser on damaged files, found by fuzzing.
_DAMAGED_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
)
_DAMAGED_ARRAY = (ValueError, TypeError, SyntaxError, TokenError, MemoryError, OverflowError)


@dataclass(frozen=True)
class Recording:
    """A prompt and its logits.

    Attributes:
        input_ids: [T] int32.
        logits: [T, vocab] float32.
    """

    input_ids: NDArray[np.int32]
    logits: NDArray[np.float32]


def load_recording(path: Path, *, n_vocab: int, max_tokens: int) -> Recording:
    """Read and check recorded logits.

    Args:
        path: the .npz file.
        n_vocab: vocabulary size of the compared model.
        max_tokens: maximum length of its prompts.

    Raises:
        ParityError: not a regular .npz file, damaged, or an array is missing, of another type or shape, or
            out of range.
        OSError: the file cannot be read.
    """
    try:
        with open_input(path, ParityError) as file, zipfile.ZipFile(file) as archive:
            input_ids = _read(archive, path, "input_ids", np.dtype(np.int32), max_tokens)
            logits = _read(archive, path, "logits", np.dtype(np.float32), max_tokens * n_vocab)
    except _DAMAGED_ARCHIVE as error:
        raise ParityError(
            "is not a readable .npz file", path=path, found=str(error), hint="record the logits again"
        ) from None
    _check(path, input_ids, logits, n_vocab)
    return Recording(input_ids, logits)


def _read(archive: zipfile.ZipFile, path: Path, key: str, dtype: np.dtype, max_items: int) -> NDArray:
    """Read one array of at most `max_items` elements, by the size that the archive declares."""
    try:
        member = archive.getinfo(f"{key}.npy")
    except KeyError:
        raise ParityError(
            "is missing",
            path=path,
            item=key,
            found=", ".join(name.removesuffix(".npy") for name in archive.namelist()[:8]) or "no arrays",
            expected="input_ids and logits",
        ) from None
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ParityError("has an unsupported compression", path=path, item=key)
    most = max_items * dtype.itemsize + HEADER_BYTES
    if member.file_size > most:
        raise ParityError(
            "exceeds this model's longest prompt",
            path=path,
            item=key,
            found=f"{member.file_size} bytes",
            expected=f"at most {most}",
            hint="is it a recording of this model?",
        )
    try:
        with archive.open(member) as stream:
            array: NDArray = np.lib.format.read_array(stream, allow_pickle=False)
    except _DAMAGED_ARRAY as error:
        raise ParityError("is not a plain array", path=path, item=key, found=str(error)) from None
    if array.dtype != dtype:
        raise ParityError("wrong type", path=path, item=key, found=array.dtype, expected=dtype)
    return array


def _check(path: Path, input_ids: NDArray, logits: NDArray, n_vocab: int) -> None:
    if input_ids.ndim != 1 or not input_ids.size:
        raise ParityError(
            "wrong shape", path=path, item="input_ids", found=list(input_ids.shape), expected="[T], not empty"
        )
    if logits.shape != (input_ids.size, n_vocab):
        raise ParityError(
            "wrong shape",
            path=path,
            item="logits",
            found=list(logits.shape),
            expected=[input_ids.size, n_vocab],
            hint="is it a recording of this model?",
        )
    outside = np.flatnonzero((input_ids < 0) | (input_ids >= n_vocab))
    if outside.size:
        raise ParityError(
            "is outside the vocabulary",
            path=path,
            item=f"input_ids[{outside[0]}]",
            found=input_ids[outside[0]],
            expected=f"0 to {n_vocab - 1}",
        )
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if bad.size:
        raise ParityError("holds NaN or infinity", path=path, item=f"logits[{bad[0]}]")
