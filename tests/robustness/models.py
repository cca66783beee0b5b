"""The six kinds of GGUF that are changed: small, of every architecture that this project runs."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sb_edge.arch.config import PRESETS
from sb_edge.bench.baselines.lfm2 import Lfm2Shape, write_lfm2_gguf
from sb_edge.bench.baselines.llama import LlamaShape, write_llama_gguf
from sb_edge.bench.baselines.rwkv7 import Rwkv7Shape, write_rwkv7_gguf
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.convert.initialise import write_random_checkpoint
from sb_edge.evaluate.perplexity import held_out_text
from sb_edge.quant.quantize import quantize

ROWS = Path(__file__).parents[2] / "bench" / "results"


def make_sources(folder: Path) -> dict[str, Path]:
    """Write them, with a checkpoint and a results file; paths by name."""
    checkpoint = folder / "tiny.checkpoint"
    tiny = folder / "tiny.gguf"
    write_random_checkpoint(
        PRESETS["tiny"].model_copy(update={"vocab_size": 320}), checkpoint, attention_bias=True, dtype="f32"
    )
    weights = load_file(checkpoint / "model.safetensors")
    save_file(
        {name: values if values.ndim == 1 else values * 4 for name, values in weights.items()},
        checkpoint / "model.safetensors",
    )
    convert_checkpoint(checkpoint, folder / "bare.gguf", outtype="f16", spike_k=3.0)
    _write_tokenizer(checkpoint / "tokenizer.json")
    convert_checkpoint(checkpoint, tiny, outtype="f32")
    quantize(tiny, folder / "q4_0.gguf", "Q4_0", spike_k=3.0)
    llama = LlamaShape(n_layer=2, hidden=128, n_head=4, n_head_kv=2, ffn=256, vocab=256, context=4096)
    write_llama_gguf(folder / "llama.gguf", "f16", shape=llama)
    lfm2 = Lfm2Shape(n_layer=3, attention_layers=(1,), hidden=256, n_head=4, n_head_kv=2, ffn=512, vocab=512)
    write_lfm2_gguf(folder / "lfm2.gguf", "f16", shape=lfm2)
    ranks = {"decay_rank": 32, "learning_rank": 32, "value_rank": 32, "gate_rank": 64}
    rwkv7 = Rwkv7Shape(n_layer=2, hidden=256, ffn=512, vocab=512, **ranks)
    write_rwkv7_gguf(folder / "rwkv7.gguf", "f16", shape=rwkv7)
    shutil.copy(next(ROWS.glob("*.jsonl")), folder / "rows.jsonl")
    names = ("tiny", "bare", "q4_0", "llama", "lfm2", "rwkv7")
    return {name: folder / f"{name}.gguf" for name in names}


def _write_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([held_out_text()], trainer)
    tokenizer.save(str(path))
