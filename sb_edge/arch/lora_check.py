"""Check of a LoRA adapter (GGUF) against its model before the engine sees it, which asserts some of this."""

from __future__ import annotations

from pathlib import Path

from sb_edge.arch.model_check import WEIGHT_TYPES
from sb_edge.gguf.reader import GgufHeader, TensorEntry, read_header, scalar_types
from sb_edge.util.errors import GgufError

_TEXT_KEYS = {"general.type": "adapter", "adapter.type": "lora"}
_ALPHA = "adapter.lora.alpha"
_EMBEDDINGS = "token_embd.weight"


def check_lora(path: Path, model: GgufHeader) -> None:
    """Refuse a file that is not a LoRA adapter of this model.

    Raises:
        GgufError: names the key or the tensor at fault.
    """
    header = read_header(path)

    def error(item: str, found: object, expected: object) -> GgufError:
        return GgufError(
            "is not a LoRA adapter of this model", path=path, item=item, found=found, expected=expected
        )

    for key, expected in (*_TEXT_KEYS.items(), ("general.architecture", model.arch)):
        if header.metadata.get(key) != expected:
            raise error(key, repr(header.metadata.get(key))[:40], repr(expected))
    if scalar_types(path).get(_ALPHA) != "float32" or not header.metadata[_ALPHA] > 0:
        raise error(_ALPHA, repr(header.metadata.get(_ALPHA))[:40], "a positive float32")
    weights = {tensor.name: tensor for tensor in model.tensors}
    tensors = {tensor.name: tensor for tensor in header.tensors}
    for name, tensor in tensors.items():
        base, _, side = name.rpartition(".lora_")
        pair = [tensors.get(f"{base}.lora_{each}") for each in "ab"]
        if side not in ("a", "b") or base not in weights or pair[0] is None or pair[1] is None:
            raise error(
                name, "no such weight or no second matrix", f"pairs for tensors of {model.files[0].name}"
            )
        if tensor.type not in WEIGHT_TYPES:
            raise error(name, tensor.type, "a type of weights")
        _check_shapes(path, pair[0], pair[1], weights[base])


def _check_shapes(path: Path, a: TensorEntry, b: TensorEntry, weight: TensorEntry) -> None:
    """[rank, in] and [out, rank] for a weight [out, in]; for embeddings transposed."""
    rows, columns = (weight.shape[0], weight.shape[-1]) if weight.name != _EMBEDDINGS else weight.shape[::-1]
    rank = a.shape[0] if a.shape else 0
    if not rank or a.shape != (rank, columns) or b.shape != (rows, rank):
        raise GgufError(
            "does not fit its weight",
            path=path,
            item=a.name,
            found=f"{list(a.shape)} and {list(b.shape)}",
            expected=f"[rank, {columns}] and [{rows}, rank]",
        )
