"""Small checkpoints and vocabularies for tests of text: byte-level BPE by hand, SentencePiece by training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import sentencepiece

from sb_edge.arch.config import PRESETS, SpikingBrainConfig
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.convert.initialise import write_random_checkpoint
from sb_edge.convert.vocab.vocabulary import add_vocabulary, load_vocabulary

SIZE = 320
FIRST_ADDED = 300
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")

Json = dict[str, Any]


def letters() -> dict[int, str]:
    """The letter that byte-level BPE shows for each byte; they are the tokens 0 to 255 ("," is 11)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


def bpe(
    words: Sequence[str] = (),
    added: Sequence[str] = (),
    *,
    regex: str = QWEN2,
    unmerged: Sequence[str] = (),
    post_processor: Json | None = None,
    normalizer: Json | None = None,
    **model: Any,
) -> Json:
    """A tokenizer.json.

    Its tokens are the bytes, `words` with their merges from the left, `unmerged`, which no merge makes,
    others up to number 299 that nothing makes, and from `FIRST_ADDED` on the special tokens `added`.
    """
    shown = letters()
    vocab = {letter: number for number, letter in enumerate(shown.values())}
    merges = []
    for word in words:
        left, *rest = (shown[byte] for byte in word.encode())
        for right in rest:
            if left + right not in vocab:
                vocab[left + right] = len(vocab)
                merges.append([left, right])
            left += right
    for word in unmerged:
        vocab["".join(shown[byte] for byte in word.encode())] = len(vocab)
    while len(vocab) < FIRST_ADDED:
        vocab["\u0100" * (len(vocab) - 250)] = len(vocab)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": FIRST_ADDED + n, "content": text, "special": True, **flags} for n, text in enumerate(added)
        ],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, cut]},
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
            **model,
        },
    }


def around(before: Sequence[tuple[str, int]] = (), after: Sequence[tuple[str, int]] = ()) -> Json:
    """A post-processor that puts special tokens before and after a text."""
    tokens = [{"SpecialToken": {"id": text, "type_id": 0}} for text, _ in (*before, *after)]
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [*tokens[: len(before)], sequence, *tokens[len(before) :]],
        "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            text: {"id": text, "ids": [number], "tokens": [text]} for text, number in (*before, *after)
        },
    }


def sentencepiece_model(folder: Path, lines: Sequence[str], size: int = SIZE, **options: Any) -> None:
    """Train a tokenizer.model, with byte tokens and without normalization unless `options` say otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"byte_fallback": True, "normalization_rule_name": "identity", "model_type": "bpe"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **settings | options,
    )
    (folder / "tokenizer.vocab").unlink()


def write_files(folder: Path, **files: Json | str | None) -> Path:
    """Files of a folder: `tokenizer_json=...` is tokenizer.json; None: no such file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            (folder / f"{stem}.{suffix}").write_text(text, encoding="utf-8")
    return folder


def tiny_config(**changes: Any) -> SpikingBrainConfig:
    """The tiny preset with `SIZE` tokens, which names no bos or eos."""
    nothing = {"vocab_size": SIZE, "bos_token_id": None, "eos_token_id": None}
    return PRESETS["tiny"].model_copy(update=nothing | changes)


def vocabulary_gguf(folder: Path, path: Path, config: SpikingBrainConfig | None = None) -> Path:
    """A GGUF of the folder's tokenizer, with keys and no tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{key}")(32)
    writer.add_layer_norm_rms_eps(1e-5)
    add_vocabulary(writer, load_vocabulary(folder, config or tiny_config()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def model_gguf(folder: Path, config: SpikingBrainConfig | None = None) -> Path:
    """`folder.gguf`: random weights with the folder's tokenizer."""
    checkpoint = folder.with_name(folder.name + "-checkpoint")
    write_random_checkpoint(config or tiny_config(), checkpoint, attention_bias=True, dtype="f32")
    for file in folder.iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    path = folder.with_name(folder.name + ".gguf")
    convert_checkpoint(checkpoint, path, outtype="f32")
    return path
