"""A random-weight LFM2 GGUF with the shape of LFM2-1.2B: short convolutions, a few attention layers."""

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
class Lfm2Shape(AttentionSizes):
    """Shape of an LFM2.

    The default is config.json of huggingface.co/LiquidAI/LFM2-1.2B: 1,170,340,608 weights, tied embeddings.
    Its `block_ff_dim` of 12288 and `block_auto_adjust_ff_dim` give 8192 (two thirds, rounded up to a multiple
    of 256), as in llama.cpp's converter.
    """

    n_layer: int = 16
    attention_layers: tuple[int, ...] = (2, 5, 8, 10, 12, 14)
    hidden: int = 2048
    n_head: int = 32
    n_head_kv: int = 8
    ffn: int = 8192
    conv_cache: int = 3
    vocab: int = 65536
    context: int = 128000
    rope_theta: float = 1e6
    norm_eps: float = 1e-5


LFM2_1_2B = Lfm2Shape()


def write_lfm2_gguf(path: Path, qtype: str = "f16", *, seed: int = 0, shape: Lfm2Shape = LFM2_1_2B) -> None:
    """Write an LFM2 with random weights and no vocabulary, for upstream's graph.

    The convolutions' kernels are F32. Arguments and errors: see `write_random_gguf`.
    """
    write_random_gguf(path, "lfm2", "LFM2", shape, _tensors(shape), qtype, _set_metadata, seed=seed)


def _tensors(shape: Lfm2Shape) -> list[RandomTensor]:
    hidden = shape.hidden
    tensors = [RandomTensor("token_embd.weight", (shape.vocab, hidden))]
    for number in range(shape.n_layer):
        layer = f"blk.{number}"
        mixer = _attention if number in shape.attention_layers else _convolution
        tensors += [
            RandomTensor.constant(f"{layer}.attn_norm.weight", hidden, 1.0),
            *mixer(layer, shape),
            *swiglu_tensors(layer, shape),
        ]
    # This architecture's name for the output norm.
    return [*tensors, RandomTensor.constant("token_embd_norm.weight", hidden, 1.0)]


def _attention(layer: str, shape: Lfm2Shape) -> list[RandomTensor]:
    return [
        *attention_tensors(layer, shape),
        RandomTensor.constant(f"{layer}.attn_q_norm.weight", shape.head_dim, 1.0),
        RandomTensor.constant(f"{layer}.attn_k_norm.weight", shape.head_dim, 1.0),
    ]


def _convolution(layer: str, shape: Lfm2Shape) -> list[RandomTensor]:
    hidden, taps = shape.hidden, shape.conv_cache
    return [
        RandomTensor(f"{layer}.shortconv.conv.weight", (hidden, taps), spread=taps**-0.5, keep_f32=True),
        RandomTensor(f"{layer}.shortconv.in_proj.weight", (3 * hidden, hidden)),
        RandomTensor(f"{layer}.shortconv.out_proj.weight", (hidden, hidden)),
    ]


def _set_metadata(writer: gguf.GGUFWriter, shape: Lfm2Shape) -> None:
    kv_heads = [shape.n_head_kv if layer in shape.attention_layers else 0 for layer in range(shape.n_layer)]
    add_attention(writer, shape, kv_heads)
    writer.add_shortconv_l_cache(shape.conv_cache)
