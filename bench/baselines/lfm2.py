"""A random-weight LFM2 GGUF with the shape of LFM2-1.2B: short convolutions, a few attention layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf

from sb_edge.bench.baselines.random_gguf import (
    RandomTensor,
    Sizes,
    add_sizes,
    attention_tensors,
    swiglu_tensors,
    write_random_gguf,
)


@dataclass(frozen=True)
class Lfm2Shape(Sizes):
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

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.hidden // self.n_head


LFM2_1_2B = Lfm2Shape()


def write_lfm2_gguf(path: Path, qtype: str = "f16", *, seed: int = 0, shape: Lfm2Shape = LFM2_1_2B) -> None:
    """Write an LFM2 with random weights and no vocabulary, for upstream's graph.

    The convolutions' kernels are F32. Arguments and errors: see `write_random_gguf`.
    """
    write_random_gguf(
        path, "lfm2", _tensors(shape), qtype, lambda writer: _set_metadata(writer, shape), seed=seed
    )


def _tensors(shape: Lfm2Shape) -> list[RandomTensor]:
    hidden = shape.hidden
    tensors = [RandomTensor("token_embd.weight", (shape.vocab, hidden))]
    for number in range(shape.n_layer):
        layer = f"blk.{number}"
        mixer = _attention if number in shape.attention_layers else _convolution
        tensors += [
            RandomTensor.constant(f"{layer}.attn_norm.weight", hidden, 1.0),
            *mixer(layer, shape),
            *swiglu_tensors(layer, hidden, shape.ffn),
        ]
    # This architecture's name for the output norm.
    return [*tensors, RandomTensor.constant("token_embd_norm.weight", hidden, 1.0)]


def _attention(layer: str, shape: Lfm2Shape) -> list[RandomTensor]:
    hidden, kv = shape.hidden, shape.n_head_kv * shape.head_dim
    return [
        *attention_tensors(layer, hidden, kv),
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
    add_sizes(writer, "LFM2 shape, random weights", shape)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_shortconv_l_cache(shape.conv_cache)
