"""Saved states: a safetensors file with the engine's bytes, the tokens seen and what they belong to."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sb_edge.gguf.reader import GgufHeader
from sb_edge.util.errors import StateError
from sb_edge.util.files import atomic_output
from sb_edge.util.hashes import sha256_of_bytes

_FORMAT = "sb-edge-state-1"
_SAMPLE = 4096


@dataclass(frozen=True)
class SavedState:
    """The content of a state file.

    Attributes:
        data: The engine's bytes.
        tokens: Token ids that the sequence has seen.
        text: What the caller saved beside them, such as a conversation; "" for nothing.
    """

    data: bytes
    tokens: list[int]
    text: str


def fingerprint(header: GgufHeader) -> str:
    """SHA-256 over a model's architecture, hyperparameters, and the names, types, shapes and first and last
    4 KiB of every tensor: cheap for any size, and other weights give another one.

    The file's name, place and descriptive keys do not enter.
    """
    return sha256_of_bytes(*_identity(header))


def _identity(header: GgufHeader) -> Iterator[bytes]:
    settings = {key: value for key, value in header.metadata.items() if key.startswith(f"{header.arch}.")}
    yield json.dumps([header.arch, settings], sort_keys=True, default=np.ndarray.tolist).encode()
    maps: dict[Path, mmap.mmap] = {}
    try:
        for tensor in sorted(header.tensors, key=lambda entry: entry.name):
            yield json.dumps([tensor.name, tensor.type, list(tensor.shape)]).encode()
            if tensor.file not in maps:
                with tensor.file.open("rb") as file:
                    maps[tensor.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            end = tensor.offset + tensor.nbytes
            yield maps[tensor.file][tensor.offset : min(tensor.offset + _SAMPLE, end)]
            yield maps[tensor.file][max(tensor.offset, end - _SAMPLE) : end]
    finally:
        for mapping in maps.values():
            mapping.close()


def save_state(
    path: Path,
    header: GgufHeader,
    state: bytes,
    tokens: Sequence[int],
    kv_types: tuple[str, str],
    text: str = "",
) -> None:
    """Write a state file, complete or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    ids = np.asarray(tokens, dtype=np.int32)
    metadata = {
        "format": _FORMAT,
        "model": fingerprint(header),
        "kv_types": ",".join(kv_types),
        "sha256": _checksum(state, ids, text),
        **({"text": text} if text else {}),
    }
    with atomic_output(path, inputs=header.files) as partial:
        save_file({"state": np.frombuffer(state, dtype=np.uint8), "tokens": ids}, partial, metadata)


def load_state(path: Path, header: GgufHeader, kv_types: tuple[str, str]) -> SavedState:
    """Read a state file back.

    Raises:
        StateError: not there, not a state file, damaged, from other weights, or with other KV types.
    """
    if not path.is_file():
        raise StateError("not found", path=path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT or set(file.keys()) != {"state", "tokens"}:
                raise StateError("is not a saved state", path=path, expected=f"format {_FORMAT}")
            state, ids = file.get_tensor("state"), file.get_tensor("tokens")
    except (SafetensorError, OSError) as error:
        raise StateError("is damaged", path=path, found=str(error), hint="save it again") from None
    data, text = state.tobytes(), metadata.get("text", "")
    if (
        state.dtype != np.uint8
        or ids.dtype != np.int32
        or metadata.get("sha256") != _checksum(data, ids, text)
    ):
        raise StateError("is damaged", path=path, found="another checksum", hint="save it again")
    if metadata.get("model") != fingerprint(header):
        raise StateError(
            "belongs to another model", path=path, hint="continue with the GGUF that the state was saved with"
        )
    if metadata.get("kv_types") != ",".join(kv_types):
        raise StateError(
            "has other KV cache types",
            path=path,
            found=metadata.get("kv_types"),
            expected=",".join(kv_types),
            hint="use the same --cache-type-k and --cache-type-v",
        )
    return SavedState(data, ids.tolist(), text)


def _checksum(state: bytes, ids: np.ndarray, text: str) -> str:
    return sha256_of_bytes(ids.tobytes(), state, text.encode())
