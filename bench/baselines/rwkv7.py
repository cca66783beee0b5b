"""A random-weight RWKV-7 GGUF with the shape of RWKV7-World-1.5B: linear attention in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf

from sb_edge.bench.baselines.random_gguf import RandomTensor, Sizes, write_random_gguf

DECAY_LOGIT = -3.0
"""Mean of w0: a channel keeps exp(-0.607 * sigmoid(-3)) = 0.97 of its state per token."""


@dataclass(frozen=True)
class Rwkv7Shape(Sizes):
    """Shape of an RWKV-7.

    The default is config.json of huggingface.co/fla-hub/rwkv7-1.5B-world (RWKV-x070-World-1.5B-v3):
    1,527,404,544 weights. llama.cpp requires low-rank value weights in the first layer, too, which does not
    use them; its converter copies the `a` weights, so the GGUF has 395,264 additional weights.
    """

    n_layer: int = 24
    hidden: int = 2048
    head_size: int = 64
    ffn: int = 8192
    decay_rank: int = 96
    learning_rank: int = 96
    value_rank: int = 64
    gate_rank: int = 256
    vocab: int = 65536
    context: int = 1 << 20
    norm_eps: float = 1e-5


RWKV7_1_5B = Rwkv7Shape()


def write_rwkv7_gguf(
    path: Path, qtype: str = "f16", *, seed: int = 0, shape: Rwkv7Shape = RWKV7_1_5B
) -> None:
    """Write an RWKV-7 with random weights and no vocabulary, for upstream's graph.

    The decay's low-rank pair and the token shift's factors are F32, as in upstream's converter. Arguments
    and errors: see `write_random_gguf`.
    """
    write_random_gguf(path, "rwkv7", "RWKV-7", shape, _tensors(shape), qtype, _set_metadata, seed=seed)


def _tensors(shape: Rwkv7Shape) -> list[RandomTensor]:
    hidden = shape.hidden
    tensors = [
        RandomTensor("token_embd.weight", (shape.vocab, hidden)),
        *_norm("token_embd_norm", hidden),
    ]
    for number in range(shape.n_layer):
        layer = f"blk.{number}"
        tensors += [*_norm(f"{layer}.attn_norm", hidden), *_norm(f"{layer}.attn_norm_2", hidden)]
        tensors += _time_mix(layer, shape, shape.value_rank if number else shape.learning_rank)
        tensors += [
            RandomTensor.constant(f"{layer}.channel_mix_lerp_k.weight", hidden, 0.5),
            RandomTensor(f"{layer}.channel_mix_key.weight", (shape.ffn, hidden)),
            RandomTensor(f"{layer}.channel_mix_value.weight", (hidden, shape.ffn)),
        ]
    return [*tensors, *_norm("output_norm", hidden), RandomTensor("output.weight", (shape.vocab, hidden))]


def _time_mix(layer: str, shape: Rwkv7Shape, value_rank: int) -> list[RandomTensor]:
    hidden = shape.hidden
    name = f"{layer}.time_mix"
    tensors = [
        # Factors of the token shift for r, w, k, v, a and g.
        RandomTensor(f"{name}_lerp_fused.weight", (6, 1, 1, hidden), centre=0.5, keep_f32=True),
        RandomTensor(f"{name}_w0.weight", (hidden,), centre=DECAY_LOGIT),
        *_low_rank(name, "w", hidden, shape.decay_rank, keep_f32=True),
        RandomTensor(f"{name}_a0.weight", (hidden,)),
        *_low_rank(name, "a", hidden, shape.learning_rank),
        RandomTensor(f"{name}_v0.weight", (hidden,)),
        *_low_rank(name, "v", hidden, value_rank),
        *_low_rank(name, "g", hidden, shape.gate_rank),
        RandomTensor(f"{name}_k_k.weight", (hidden,), centre=1.0),
        RandomTensor(f"{name}_k_a.weight", (hidden,), centre=1.0),
        RandomTensor(f"{name}_r_k.weight", (hidden,)),
    ]
    tensors += [
        RandomTensor(f"{name}_{part}.weight", (hidden, hidden))
        for part in ("key", "value", "receptance", "output")
    ]
    return [*tensors, *_norm(f"{name}_ln", hidden)]


def _low_rank(
    name: str, letter: str, hidden: int, rank: int, *, keep_f32: bool = False
) -> list[RandomTensor]:
    return [
        RandomTensor(f"{name}_{letter}1.weight", (rank, hidden), keep_f32=keep_f32),
        RandomTensor(f"{name}_{letter}2.weight", (hidden, rank), keep_f32=keep_f32),
    ]


def _norm(name: str, hidden: int) -> list[RandomTensor]:
    return [
        RandomTensor.constant(f"{name}.weight", hidden, 1.0),
        RandomTensor.constant(f"{name}.bias", hidden, 0.0),
    ]


def _set_metadata(writer: gguf.GGUFWriter, shape: Rwkv7Shape) -> None:
    writer.add_head_count(0)  # required, not used
    writer.add_layer_norm_eps(shape.norm_eps)
    writer.add_wkv_head_size(shape.head_size)
    writer.add_decay_lora_rank(shape.decay_rank)
    writer.add_iclr_lora_rank(shape.learning_rank)
    writer.add_value_residual_mix_lora_rank(shape.value_rank)
    writer.add_gate_lora_rank(shape.gate_rank)
