"""The engine and the tokenizer's own library give the same tokens."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import sentencepiece
from test_vocab import make_config, train, train_sentencepiece

from sb_edge.convert.vocab.vocabulary import add_vocabulary, load_vocabulary
from sb_edge.runtime.model import Model

pytestmark = pytest.mark.engine

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "  spaces   and\ttabs\n\nlines \n",
    "It's they're WE'VE 1234567 3.14 a1b2",
    "Grüße, 世界! 🧠 привет",
    "<|im_start|>user\nspike<|im_end|>\n",
    "",
]


def vocabulary_only(folder: Path, path: Path, vocab_size: int) -> Path:
    """A GGUF with keys and no tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{key}")(32)
    writer.add_layer_norm_rms_eps(1e-5)
    add_vocabulary(writer, load_vocabulary(folder, make_config(vocab_size=vocab_size)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "smollm", "gpt-2"])
def test_byte_level_bpe(tmp_path, pre):
    tokenizer = train(pre)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with Model(vocabulary_only(tmp_path, tmp_path / "v.gguf", 320), vocab_only=True) as model:
        for text in TEXTS:
            expected = tokenizer.encode(text, add_special_tokens=False).ids
            assert model.tokenize(text, add_special=False) == expected, text
            # special tokens are control tokens, which neither of the two prints
            assert model.detokenize(expected).decode() == tokenizer.decode(expected)


def test_sentencepiece(tmp_path):
    path = train_sentencepiece(tmp_path, "bpe")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    with Model(vocabulary_only(tmp_path, tmp_path / "v.gguf", 330), vocab_only=True) as model:
        for text in ("The quick brown fox", "It's 1234 Grüße 世界", "spiking brains"):
            assert model.tokenize(text, add_special=False) == processor.EncodeAsIds(text), text
