"""Saved states: a safetensors file with the engine's bytes, the tokens seen and what they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sb_edge.gguf.reader import GgufHeader
from sb_edge.util.errors import OutputError, StateError
from sb_edge.util.files import atomic_output
from sb_edge.util.hashes import sha256_of_bytes
from sb_edge.util.user_cache import remembered_sha256

_FORMAT = "sb-edge-state-2"


@dataclass(frozen=True)
class SavedState:
    """The content of a state file.

    Attributes:
        data: The engine's bytes.
        tokens: Token ids that the sequence has seen.
        pending: Token ids that follow them, to be evaluated first when the text goes on.
        text: What the caller saved beside them, such as a conversation; "" for nothing.
    """

    data: bytes
    tokens: list[int]
    pending: list[int]
    text: str


@dataclass(frozen=True)
class StateOwner:
    """What a state belongs to; with anything else it continues as another text.

    Attributes:
        header: The model, with all of its keys: weights, quantization, tokenizer, window, spikes.
        type_k, type_v: Types of cached keys and values.
        settings: Other settings that the computation depends on.
    """

    header: GgufHeader
    type_k: str
    type_v: str
    settings: str

    def identity(self) -> str:
        """SHA-256 of the whole files of the model, with the settings."""
        return sha256_of_bytes(remembered_sha256(*self.header.files).encode(), self.settings.encode())


def save_state(
    path: Path,
    owner: StateOwner,
    state: bytes,
    tokens: Sequence[int],
    pending: Sequence[int] = (),
    text: str = "",
) -> None:
    """Write a state file, complete or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    ids, following = np.asarray(tokens, dtype=np.int32), np.asarray(pending, dtype=np.int32)
    metadata = {
        "format": _FORMAT,
        "model": owner.identity(),
        "kv_types": f"{owner.type_k},{owner.type_v}",
        "sha256": _checksum(state, ids, following, text),
        **({"text": text} if text else {}),
    }
    with atomic_output(path, inputs=owner.header.files) as partial:
        partial.touch()  # a folder that cannot be written to is found here, with its reason
        try:
            values: dict[str, np.ndarray] = {
                "state": np.frombuffer(state, dtype=np.uint8),
                "tokens": ids,
                "pending": following,
            }
            save_file(values, partial, metadata)
        except SafetensorError as error:
            raise OutputError("cannot be written", path=path, found=str(error)) from None


def load_state(path: Path, owner: StateOwner) -> SavedState:
    """Read a state file back.

    Raises:
        StateError: not there, not a state file, damaged, from other weights, or with other KV types.
    """
    if not path.is_file():
        raise StateError("not found", path=path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT or set(file.keys()) != {"state", "tokens", "pending"}:
                raise StateError("is not a saved state", path=path, expected=f"format {_FORMAT}")
            state, ids, following = (file.get_tensor(name) for name in ("state", "tokens", "pending"))
    except (SafetensorError, OSError) as error:
        raise StateError("is damaged", path=path, found=str(error), hint="save it again") from None
    data, text = state.tobytes(), metadata.get("text", "")
    if (
        state.dtype != np.uint8
        or ids.dtype != np.int32
        or following.dtype != np.int32
        or metadata.get("sha256") != _checksum(data, ids, following, text)
    ):
        raise StateError("is damaged", path=path, found="another checksum", hint="save it again")
    if metadata.get("kv_types") != f"{owner.type_k},{owner.type_v}":
        raise StateError(
            "has other KV cache types",
            path=path,
            found=metadata.get("kv_types"),
            expected=f"{owner.type_k},{owner.type_v}",
            hint="use the same --cache-type-k and --cache-type-v",
        )
    if metadata.get("model") != owner.identity():
        raise StateError(
            "belongs to another model or other settings",
            path=path,
            hint="continue with the GGUF, the spikes and the adapters that the state was saved with",
        )
    return SavedState(data, ids.tolist(), following.tolist(), text)


def _checksum(state: bytes, ids: np.ndarray, following: np.ndarray, text: str) -> str:
    return sha256_of_bytes(ids.tobytes(), b"|", following.tobytes(), state, text.encode())
