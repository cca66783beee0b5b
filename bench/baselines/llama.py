"""A random-weight Llama GGUF with the shape of Llama-3.2-1B, a baseline for speed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf

from sb_edge.bench.baselines.random_gguf import (
    AttentionSizes,
    RandomTensor,
    add_attention,
    attention_tensors,
    swiglu_tensors,
    write_random_gguf,
)


@dataclass(frozen=True)
class LlamaShape(AttentionSizes):
    """Shape of a Llama. The default is Llama-3.2-1B's config.json."""

    n_layer: int = 16
    hidden: int = 2048
    n_head: int = 32
    n_head_kv: int = 8
    ffn: int = 8192
    vocab: int = 128256
    context: int = 131072
    rope_theta: float = 5e5
    norm_eps: float = 1e-5


LLAMA_3_2_1B = LlamaShape()


def write_llama_gguf(
    path: Path, qtype: str = "f16", *, seed: int = 0, shape: LlamaShape = LLAMA_3_2_1B
) -> None:
    """Write a Llama with random weights, tied embeddings and no vocabulary.

    Arguments and errors: see `write_random_gguf`.
    """
    write_random_gguf(path, "llama", "Llama", shape, _tensors(shape), qtype, _set_metadata, seed=seed)


def _tensors(shape: LlamaShape) -> list[RandomTensor]:
    hidden = shape.hidden
    tensors = [RandomTensor("token_embd.weight", (shape.vocab, hidden))]
    for number in range(shape.n_layer):
        layer = f"blk.{number}"
        tensors += [
            RandomTensor.constant(f"{layer}.attn_norm.weight", hidden, 1.0),
            *attention_tensors(layer, shape),
            *swiglu_tensors(layer, shape),
        ]
    return [*tensors, RandomTensor.constant("output_norm.weight", hidden, 1.0)]


def _set_metadata(writer: gguf.GGUFWriter, shape: LlamaShape) -> None:
    add_attention(writer, shape, shape.n_head_kv)
    writer.add_rope_dimension_count(shape.head_dim)
