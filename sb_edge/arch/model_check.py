"""Check of a GGUF's keys, vocabulary and tensor types before the engine sees the file.

The engine asserts much of this, which would end the process. The rest it accepts, and computes noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sb_edge.arch import ARCH
from sb_edge.arch.layer_map import layer_count
from sb_edge.gguf.reader import GgufHeader, read_header
from sb_edge.gguf.types import BLOCK_SIZES
from sb_edge.util.errors import GgufError

MAX_EXPERTS = 1024
"""The engine's own limit (LLAMA_MAX_EXPERTS)."""

MIN_ALIGNMENT = 8
"""Smallest alignment of tensor data that the format allows; the kernels read 8 bytes at once."""

WEIGHT_TYPES = frozenset(BLOCK_SIZES) - {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
"""Types that a matrix of a model may have; the others are for intermediate results and indices."""

_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_POSITIVE = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base")
_EMBEDDINGS = "token_embd.weight"


def read_model(path: Path) -> GgufHeader:
    """Read and check the header of a model.

    Raises:
        GgufError: as `read_header` and `check_model`.
    """
    header = read_header(path)
    check_model(header)
    return header


def check_model(header: GgufHeader) -> None:
    """Check what the engine would build from a header.

    Raises:
        GgufError: names the key or the tensor that is impossible.
    """
    for key, value in header.metadata.items():
        if key.startswith(f"{header.arch}."):
            _check_value(header, key, value)
    if f"{header.arch}.block_count" in header.metadata:
        _check_layers(header)
    if header.metadata.get("general.alignment", MIN_ALIGNMENT) < MIN_ALIGNMENT:
        alignment = header.metadata["general.alignment"]
        raise _error(header, "general.alignment", "is too small", alignment, f"at least {MIN_ALIGNMENT}")
    _check_rope(header)
    _check_vocabulary(header)
    _check_tensors(header)


def _error(header: GgufHeader, item: str, message: str, found: object, expected: object) -> GgufError:
    return GgufError(message, path=header.files[0], item=item, found=found, expected=expected)


def _check_value(header: GgufHeader, key: str, value: Any) -> None:
    """Numbers are finite, integers not negative and below 2^31."""
    numbers = np.atleast_1d(value) if isinstance(value, bool | int | float | np.ndarray) else np.zeros(0)
    if numbers.dtype.kind == "f":
        bad = numbers[~np.isfinite(numbers)]
        expected = "a finite number"
    elif numbers.dtype.kind in "iuO":
        bad = numbers[(numbers < 0) | (numbers >= 2**31)]
        expected = "0 to 2147483647"
    else:
        return
    if bad.size:
        raise _error(header, key, "is impossible", bad[0], expected)
    if key.removeprefix(f"{header.arch}.") in _POSITIVE and not (numbers > 0).all():
        raise _error(header, key, "is impossible", numbers.min(), "a positive number")


def _check_layers(header: GgufHeader) -> None:
    layers = layer_count(header)
    predicted = header.integer("nextn_predict_layers", 0)
    if predicted >= layers or (predicted and header.arch == ARCH):
        key = f"{header.arch}.nextn_predict_layers"
        expected = 0 if header.arch == ARCH else f"less than {layers} layers"
        raise _error(header, key, "is impossible", predicted, expected)
    experts = header.integer("expert_count", 0)
    for name, value, low, high in _expert_ranges(header, experts):
        if not low <= value <= high:
            expected = low if low == high else f"{low} to {high}"
            raise _error(header, f"{header.arch}.{name}", "is impossible", value, expected)


def _expert_ranges(header: GgufHeader, experts: int) -> Iterator[tuple[str, int, int, int]]:
    """Key, value, smallest and largest possible value."""
    yield "expert_count", experts, 0, 0 if header.arch == ARCH else MAX_EXPERTS
    used = header.metadata.get(f"{header.arch}.expert_used_count", 0)
    most = (
        int(used.max(initial=0)) if isinstance(used, np.ndarray) else header.integer("expert_used_count", 0)
    )
    yield "expert_used_count", most, min(experts, 1), experts
    groups = header.integer("expert_group_count", 0)
    yield "expert_group_count", groups, 0, max(experts - 1, 0)
    if groups > 1:
        yield "expert_group_used_count", header.integer("expert_group_used_count", 0), 1, groups - 1
        yield "expert_group_count", experts % groups, 0, 0


def _check_rope(header: GgufHeader) -> None:
    key = f"{header.arch}.rope.scaling.type"
    kind = header.metadata.get(key, "none")
    if kind not in _ROPE_SCALINGS:
        raise _error(header, key, "is unknown", repr(kind), " or ".join(_ROPE_SCALINGS))


def _check_vocabulary(header: GgufHeader) -> None:
    metadata = header.metadata
    rows = next((each.shape[0] for each in header.tensors if each.name == _EMBEDDINGS and each.shape), 0)
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        stated = metadata.get(f"{header.arch}.vocab_size", rows)
        if rows and stated != rows:
            raise _error(header, f"{header.arch}.vocab_size", f"does not fit {_EMBEDDINGS}", stated, rows)
        return
    if not isinstance(tokens, list):
        raise _error(header, "tokenizer.ggml.tokens", "is not a list", type(tokens).__name__, "strings")
    if rows and len(tokens) != rows:
        raise _error(header, "tokenizer.ggml.tokens", f"does not fit {_EMBEDDINGS}", len(tokens), rows)
    _check_unique(header, tokens)
    is_sentencepiece = metadata.get("tokenizer.ggml.model") == "llama"
    for name, kinds, needed in (("scores", "fi", is_sentencepiece), ("token_type", "i", False)):
        key = f"tokenizer.ggml.{name}"
        values = metadata.get(key)
        if values is None and not needed:
            continue
        sound = isinstance(values, np.ndarray) and values.dtype.kind in kinds and values.dtype.itemsize == 4
        if not isinstance(values, np.ndarray) or not sound or len(values) != len(tokens):
            found = "nothing" if values is None else f"{len(np.atleast_1d(values))} values"
            raise _error(header, key, "is not one 32-bit number a token", found, len(tokens))


def _check_unique(header: GgufHeader, tokens: list[str]) -> None:
    """The engine finds tokens by their text, which ends at a NUL; it names an empty one by its number."""
    texts = [text.partition("\0")[0] or f"[EMPTY_{number}]" for number, text in enumerate(tokens)]
    last = {text: number for number, text in enumerate(texts)}
    if len(last) == len(texts):
        return
    for number, text in enumerate(texts):
        if last[text] != number and "\N{REPLACEMENT CHARACTER}" not in text:  # bytes that are not UTF-8
            found = f"{text!r} as {number} and {last[text]}"
            raise _error(header, "tokenizer.ggml.tokens", "a token is listed twice", found, "each once")


def _check_tensors(header: GgufHeader) -> None:
    for tensor in header.tensors:
        is_vector = math.prod(tensor.shape[:-1]) == 1
        if tensor.type not in WEIGHT_TYPES or (len(tensor.shape) < 2 and tensor.type != "F32"):
            expected = "F32" if is_vector else "a type of weights"
            raise _error(header, tensor.name, "has the wrong type", tensor.type, expected)
