"""The engine and the tokenizer's own library give the same tokens."""

from __future__ import annotations

import pytest
import sentencepiece
from test_vocab import train, train_sentencepiece
from text_checkpoints import tiny_config, vocabulary_gguf

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


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "smollm", "gpt-2"])
def test_byte_level_bpe(tmp_path, pre):
    tokenizer = train(pre)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with Model(vocabulary_gguf(tmp_path, tmp_path / "v.gguf"), vocab_only=True) as model:
        for text in TEXTS:
            expected = tokenizer.encode(text, add_special_tokens=False).ids
            assert model.tokenize(text, add_special=False) == expected, text
            # special tokens are control tokens, which neither of the two prints
            assert model.detokenize(expected).decode() == tokenizer.decode(expected)


def test_sentencepiece(tmp_path):
    path = train_sentencepiece(tmp_path, "bpe")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    with Model(
        vocabulary_gguf(tmp_path, tmp_path / "v.gguf", tiny_config(vocab_size=330)), vocab_only=True
    ) as model:
        for text in ("The quick brown fox", "It's 1234 Grüße 世界", "spiking brains"):
            assert model.tokenize(text, add_special=False) == processor.EncodeAsIds(text), text
