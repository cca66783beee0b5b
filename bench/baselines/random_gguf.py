"""Write a GGUF with random weights, for baselines of other architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeVar

import gguf
import numpy as np

from sb_edge.convert.checkpoint.random_weights import encoded, normal
from sb_edge.convert.convert import FILE_TYPES, OUTTYPES
from sb_edge.convert.initialise import INITIALIZER_RANGE
from sb_edge.convert.vocab.vocabulary import NO_VOCABULARY
from sb_edge.gguf.writer import PlannedTensor, write_gguf
from sb_edge.util.files import require_free_space
from sb_edge.util.progress import progress_bar


@dataclass(frozen=True)
class RandomTensor:
    """A tensor and the distribution of its values.

    Attributes:
        name: name in the GGUF.
        shape: shape in numpy's order, [out, in].
        centre: mean of the values.
        spread: standard deviation of the values; 0: all are `centre`.
        keep_f32: whether a matrix is F32, like every vector, as in upstream's converter.
    """

    name: str
    shape: tuple[int, ...]
    centre: float = 0.0
    spread: float = INITIALIZER_RANGE
    keep_f32: bool = False

    @classmethod
    def constant(cls, name: str, size: int, value: float) -> RandomTensor:
        """A vector [size] of equal values, for example an initial norm."""
        return cls(name, (size,), value, 0.0)


@dataclass(frozen=True)
class Sizes:
    """Sizes common to all architectures."""

    n_layer: int
    hidden: int
    ffn: int
    vocab: int
    context: int
    norm_eps: float


@dataclass(frozen=True)
class AttentionSizes(Sizes):
    """Sizes of architectures with softmax attention."""

    n_head: int
    n_head_kv: int
    rope_theta: float

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.hidden // self.n_head


def add_attention(writer: gguf.GGUFWriter, shape: AttentionSizes, n_head_kv: int | Sequence[int]) -> None:
    """Add the metadata keys of softmax attention; `n_head_kv`: of all layers, or one number a layer."""
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_theta)


def attention_tensors(layer: str, shape: AttentionSizes) -> list[RandomTensor]:
    """Projections of softmax attention."""
    hidden, kv = shape.hidden, shape.n_head_kv * shape.head_dim
    return [
        RandomTensor(f"{layer}.attn_q.weight", (hidden, hidden)),
        RandomTensor(f"{layer}.attn_k.weight", (kv, hidden)),
        RandomTensor(f"{layer}.attn_v.weight", (kv, hidden)),
        RandomTensor(f"{layer}.attn_output.weight", (hidden, hidden)),
    ]


def swiglu_tensors(layer: str, shape: Sizes) -> list[RandomTensor]:
    """A gated feed-forward network and its norm."""
    hidden, ffn = shape.hidden, shape.ffn
    return [
        RandomTensor.constant(f"{layer}.ffn_norm.weight", hidden, 1.0),
        RandomTensor(f"{layer}.ffn_gate.weight", (ffn, hidden)),
        RandomTensor(f"{layer}.ffn_up.weight", (ffn, hidden)),
        RandomTensor(f"{layer}.ffn_down.weight", (hidden, ffn)),
    ]


Shape = TypeVar("Shape", bound=Sizes)


def write_random_gguf(
    path: Path,
    arch: str,
    name: str,
    shape: Shape,
    tensors: Sequence[RandomTensor],
    qtype: str,
    set_metadata: Callable[[gguf.GGUFWriter, Shape], None],
    *,
    seed: int,
) -> None:
    """Write a GGUF with random weights and no vocabulary; `path` appears only when complete.

    Args:
        path: the GGUF.
        arch: value of `general.architecture`.
        name: the architecture's own name.
        shape: its sizes.
        tensors: tensors in file order.
        qtype: type of the matrices, "f32", "f16" or "bf16"; vectors are F32.
        set_metadata: adds the keys that only this architecture has.
        seed: random seed of the weights.

    Raises:
        OutputError: the file cannot be written.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    planned = [_plan(tensor, OUTTYPES[qtype]) for tensor in tensors]
    nbytes = sum(tensor.nbytes for tensor in planned)
    if path.parent.is_dir():
        require_free_space(path.parent, nbytes, "the GGUF")

    def metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(f"{name} shape, random weights")
        writer.add_context_length(shape.context)
        writer.add_embedding_length(shape.hidden)
        writer.add_block_count(shape.n_layer)
        writer.add_feed_forward_length(shape.ffn)
        writer.add_vocab_size(shape.vocab)
        set_metadata(writer, shape)
        writer.add_file_type(FILE_TYPES[qtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_tokenizer_model(NO_VOCABULARY)

    with progress_bar("writing random weights", nbytes, unit="bytes") as advance:

        def data(tensor: PlannedTensor) -> Iterator[np.ndarray]:
            values = _values(by_name[tensor.name], tensor.source, seed)
            return encoded(values, tensor.qtype.name.lower(), advance)

        write_gguf(path, arch, planned, metadata, data)


def _plan(tensor: RandomTensor, qtype: gguf.GGMLQuantizationType) -> PlannedTensor:
    is_f32 = len(tensor.shape) == 1 or tensor.keep_f32
    return PlannedTensor(
        tensor.name,
        tensor.name.removesuffix(".weight"),
        tensor.shape,
        gguf.GGMLQuantizationType.F32 if is_f32 else qtype,
    )


def _values(tensor: RandomTensor, source: str, seed: int) -> Iterator[np.ndarray]:
    size = prod(tensor.shape)
    if not tensor.spread:
        return iter([np.full(size, tensor.centre, np.float32)])
    return normal(seed, source, size, tensor.spread, tensor.centre)
