"""A GGUF with random weights: what a benchmark's models of other architectures are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy as np

from sb_edge.convert.checkpoint.random_weights import normal
from sb_edge.convert.convert import FILE_TYPES, OUTTYPES
from sb_edge.convert.initialise import INITIALIZER_RANGE
from sb_edge.convert.vocab.vocabulary import NO_VOCABULARY
from sb_edge.gguf.floats import encoder
from sb_edge.gguf.writer import PlannedTensor, write_gguf
from sb_edge.util.files import require_free_space
from sb_edge.util.progress import progress_bar


@dataclass(frozen=True)
class RandomTensor:
    """A tensor and how its values are drawn.

    Attributes:
        name: in the GGUF.
        shape: numpy's order, [out, in].
        centre: mean of the values.
        spread: their standard deviation; 0: all are `centre`.
        keep_f32: a matrix that upstream's converter leaves in F32, as it does every vector.
    """

    name: str
    shape: tuple[int, ...]
    centre: float = 0.0
    spread: float = INITIALIZER_RANGE
    keep_f32: bool = False

    @classmethod
    def constant(cls, name: str, size: int, value: float) -> RandomTensor:
        """A vector [size] of one value, as norms are before training."""
        return cls(name, (size,), value, 0.0)


@dataclass(frozen=True)
class Sizes:
    """What every architecture's shape has."""

    n_layer: int
    hidden: int
    ffn: int
    vocab: int
    context: int


def add_sizes(writer: gguf.GGUFWriter, name: str, shape: Sizes) -> None:
    """The keys that every architecture begins with."""
    writer.add_name(name)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_vocab_size(shape.vocab)


def attention_tensors(layer: str, hidden: int, kv: int) -> list[RandomTensor]:
    """Projections of softmax attention; `kv` is the width of keys and of values."""
    return [
        RandomTensor(f"{layer}.attn_q.weight", (hidden, hidden)),
        RandomTensor(f"{layer}.attn_k.weight", (kv, hidden)),
        RandomTensor(f"{layer}.attn_v.weight", (kv, hidden)),
        RandomTensor(f"{layer}.attn_output.weight", (hidden, hidden)),
    ]


def swiglu_tensors(layer: str, hidden: int, ffn: int) -> list[RandomTensor]:
    """A gated feed-forward network and the norm before it."""
    return [
        RandomTensor.constant(f"{layer}.ffn_norm.weight", hidden, 1.0),
        RandomTensor(f"{layer}.ffn_gate.weight", (ffn, hidden)),
        RandomTensor(f"{layer}.ffn_up.weight", (ffn, hidden)),
        RandomTensor(f"{layer}.ffn_down.weight", (hidden, ffn)),
    ]


def write_random_gguf(
    path: Path,
    arch: str,
    tensors: Sequence[RandomTensor],
    qtype: str,
    set_metadata: Callable[[gguf.GGUFWriter], None],
    *,
    seed: int = 0,
) -> None:
    """Write a GGUF with random weights and no vocabulary, streamed; complete or not at all.

    Args:
        path: the GGUF.
        arch: `general.architecture`.
        tensors: in the order of the file.
        qtype: "f32", "f16" or "bf16", of the matrices; vectors are F32.
        set_metadata: adds the architecture's keys.
        seed: the same seed gives the same values.

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
        set_metadata(writer)
        writer.add_file_type(FILE_TYPES[qtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_tokenizer_model(NO_VOCABULARY)

    with progress_bar("writing random weights", nbytes, unit="bytes") as advance:

        def data(tensor: PlannedTensor) -> Iterator[np.ndarray]:
            encode = encoder(tensor.qtype.name.lower())
            for values in _values(by_name[tensor.name], tensor.source, seed):
                encoded = encode(values)
                if encoded is not None:  # initial values are small: they fit every type
                    advance(encoded.nbytes)
                    yield encoded

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
        yield np.full(size, tensor.centre, np.float32)
        return
    for values in normal(seed, source, size, tensor.spread):
        if tensor.centre:
            values += np.float32(tensor.centre)
        yield values
