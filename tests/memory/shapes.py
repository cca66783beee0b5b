"""Headers of real shapes, without their tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sb_edge.gguf.reader import GgufHeader

LLAMA_1B = {
    "block_count": 16,
    "embedding_length": 2048,
    "feed_forward_length": 8192,
    "attention.head_count": 32,
    "attention.head_count_kv": 8,
    "vocab_size": 128256,
}
SB_1B = LLAMA_1B | {
    "attention.sliding_window": 4096,
    "attention.key_length": 64,
    "attention.value_length": 64,
    "attention.recurrent_layers": np.arange(16) % 2 == 0,
}

LFM2_1_2B = {
    "block_count": 16,
    "embedding_length": 2048,
    "feed_forward_length": 8192,
    "attention.head_count": 32,
    "attention.head_count_kv": np.array([8 * (layer in (2, 5, 8, 10, 12, 14)) for layer in range(16)]),
    "shortconv.l_cache": 3,
    "vocab_size": 65536,
}
RWKV7_1_5B = {
    "block_count": 24,
    "embedding_length": 2048,
    "feed_forward_length": 8192,
    "attention.head_count": 0,
    "wkv.head_size": 64,
    "vocab_size": 65536,
}
SHAPES = {"llama": LLAMA_1B, "spikingbrain": SB_1B, "lfm2": LFM2_1_2B, "rwkv7": RWKV7_1_5B}


def header(arch: str, keys: dict) -> GgufHeader:
    return GgufHeader(arch, {f"{arch}.{name}": value for name, value in keys.items()}, [], [Path("m.gguf")])
