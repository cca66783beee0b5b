"""A random-weight Llama GGUF in the shape of Llama-3.2-1B: the baseline for measuring speed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy as np

from sb_edge.convert.convert import FILE_TYPES, OUTTYPES
from sb_edge.convert.floats import encoder
from sb_edge.convert.gguf_writer import PlannedTensor, write_gguf
from sb_edge.convert.initialise import INITIALIZER_RANGE
from sb_edge.convert.random_weights import normal
from sb_edge.convert.vocab import NO_VOCABULARY
from sb_edge.files import require_free_space
from sb_edge.progress import progress_bar


@dataclass(frozen=True)
class LlamaShape:
    """What decides how much a Llama computes. The default is Llama-3.2-1B's config.json."""

    n_layer: int = 16
    hidden: int = 2048
    n_head: int = 32
    n_head_kv: int = 8
    ffn: int = 8192
    vocab: int = 128256
    context: int = 131072
    rope_theta: float = 5e5
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.hidden // self.n_head


LLAMA_3_2_1B = LlamaShape()


def write_llama_gguf(
    path: Path, qtype: str = "f16", *, seed: int = 0, shape: LlamaShape = LLAMA_3_2_1B
) -> None:
    """Write a Llama with random weights, tied embeddings and no vocabulary; complete or not at all.

    Args:
        path: the GGUF.
        qtype: "f32", "f16" or "bf16", of the matrices; norms are F32.
        seed: the same seed gives the same values.
        shape: of the model.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = _tensors(shape, OUTTYPES[qtype])
    nbytes = sum(tensor.nbytes for tensor in tensors)
    if path.parent.is_dir():
        require_free_space(path.parent, nbytes, "the GGUF")
    with progress_bar("writing random weights", nbytes, unit="bytes") as advance:

        def data(tensor: PlannedTensor) -> Iterator[np.ndarray]:
            for piece in _data(tensor, seed):
                advance(piece.nbytes)
                yield piece

        write_gguf(path, "llama", tensors, lambda writer: _set_metadata(writer, shape, qtype), data)


def _tensors(shape: LlamaShape, qtype: gguf.GGMLQuantizationType) -> list[PlannedTensor]:
    hidden, kv = shape.hidden, shape.n_head_kv * shape.head_dim
    layer = {
        "attn_norm": (hidden,),
        "attn_q": (hidden, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, hidden),
        "ffn_norm": (hidden,),
        "ffn_gate": (shape.ffn, hidden),
        "ffn_up": (shape.ffn, hidden),
        "ffn_down": (hidden, shape.ffn),
    }
    names: dict[str, tuple[int, ...]] = {"token_embd": (shape.vocab, hidden)}
    for number in range(shape.n_layer):
        names |= {f"blk.{number}.{name}": size for name, size in layer.items()}
    names["output_norm"] = (hidden,)
    f32 = gguf.GGMLQuantizationType.F32
    return [
        PlannedTensor(f"{name}.weight", name, size, qtype if len(size) > 1 else f32)
        for name, size in names.items()
    ]


def _set_metadata(writer: gguf.GGUFWriter, shape: LlamaShape, qtype: str) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("Llama shape, random weights")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_vocab_size(shape.vocab)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_file_type(FILE_TYPES[qtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model(NO_VOCABULARY)


def _data(tensor: PlannedTensor, seed: int) -> Iterator[np.ndarray]:
    encode = encoder(tensor.qtype.name.lower())
    size = prod(tensor.shape)
    pieces = (
        normal(seed, tensor.source, size, INITIALIZER_RANGE)
        if len(tensor.shape) > 1
        else iter([np.ones(size, np.float32)])
    )
    for values in pieces:
        encoded = encode(values)
        if encoded is not None:  # initial values are small: they fit every type
            yield encoded
