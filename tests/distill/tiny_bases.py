"""A tiny base with a tokenizer of bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from dense_shapes import dense_shapes
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS = 32, 4, 2, 48, 4
VOCAB = 258
END_TOKEN = 257
END = "<|endoftext|>"


def base_weights(*, bias: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = dense_shapes(
        vocab=VOCAB, hidden=HIDDEN, n_layer=LAYERS, kv=HIDDEN // HEADS * KV_HEADS, ffn=FFN, bias=bias
    )
    return {
        name: np.ones(shape, np.float32)
        if name.endswith("norm.weight")
        else (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_base(folder: Path, *, bias: bool = False, **changes: object) -> Path:
    """A Llama-shaped (with biases: Qwen2-shaped) base of random weights that reads bytes, and "th"."""
    folder.mkdir()
    config = {
        "model_type": "qwen2" if bias else "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": FFN,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000,
        "tie_word_embeddings": True,
        "eos_token_id": END_TOKEN,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(base_weights(bias=bias), folder / "model.safetensors")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate([*alphabet, "th"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": END})
    )
    return folder
