"""Byte-level BPE: tokenizer.json, or vocab.json and merges.txt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb_edge.arch.text_normalizer import UNICODE_STEPS
from sb_edge.convert.vocab.tokens import (
    TokenTable,
    TokenType,
    Vocabulary,
    read_added_tokens,
    read_tokenizer_file,
    read_vocab_map,
)
from sb_edge.util.errors import TokenizerError
from sb_edge.util.input_files import read_text_input

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
Steps = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class PreTokenizer:
    """A pre-tokenizer of the engine (`tokenizer.ggml.pre`), and what the engine ties to its name.

    Attributes:
        steps: kind and setting of each step.
        ignore_merges: a word that is a token is not built by merges.
        add_bos: a text begins with bos if the GGUF does not say.
    """

    steps: Steps
    ignore_merges: bool = False
    add_bos: bool = False

    def to_json(self) -> dict[str, Any]:
        """The pre-tokenizer of a tokenizer.json."""
        nodes: list[dict[str, Any]] = []
        for kind, value in self.steps:
            if kind == "split":
                pattern = {"Regex": value}
                nodes.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
            elif kind == "digits":
                nodes.append({"type": "Digits", "individual_digits": value})
            else:
                nodes.append({**_BYTES, "use_regex": value})
        return {"type": "Sequence", "pretokenizers": nodes}


_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_LLAMA3_STEPS = (("split", _LLAMA3), ("bytes", False))

PRE_TOKENIZERS = {
    "qwen2": PreTokenizer((("split", _QWEN2), ("bytes", False))),
    "llama-bpe": PreTokenizer(_LLAMA3_STEPS, ignore_merges=True, add_bos=True),
    "smaug-bpe": PreTokenizer(_LLAMA3_STEPS),
    "smollm": PreTokenizer((("digits", True), ("bytes", True))),
    "gpt-2": PreTokenizer((("bytes", True),)),
}
"""Pre-tokenizers by their names in the engine; other names that the engine has for the same are not read."""

_TOKENIZER_CLASSES = {"Qwen2Tokenizer": ("qwen2", ("NFC",)), "GPT2Tokenizer": ("gpt-2", ())}
"""Pre-tokenizer and normalization of transformers' tokenizer classes."""


def load_tokenizer_json(
    document: Mapping[str, Any], path: Path, vocab_size: int, tokenizer_config: Mapping[str, Any]
) -> Vocabulary:
    """Read a tokenizer.json that holds a byte-level BPE, and the tokens that other files in its folder add.

    Args:
        document: its content.
        path: the tokenizer.json.
        vocab_size: number of tokens of the model.
        tokenizer_config: content of tokenizer_config.json.

    Raises:
        TokenizerError: the file is damaged, or the engine does not support its model, pre-tokenizer or
            normalizer.
    """
    model = document.get("model")
    if not isinstance(model, dict):
        raise TokenizerError("has no model", path=path, item="model", hint="fetch this file again")
    _check_model(model, document, path)
    pre = _pre_of(document, bool(model.get("ignore_merges")), path)
    vocab = read_vocab_map(model.get("vocab"), path)
    table = TokenTable(vocab_size)
    for text, token_id in vocab.items():
        table.put(token_id, text, TokenType.NORMAL, path)
    for token in read_added_tokens(path.parent, tokenizer_config, document):
        table.put_added(token)
    merges = _json_merges(model.get("merges"), vocab, path)
    normalizer = _normalizer(document.get("normalizer"), path)
    return Vocabulary("gpt2", pre, table, merges=merges, normalizer=normalizer)


def _pre_of(document: Mapping[str, Any], ignore_merges: bool, path: Path) -> str:
    """The engine's name of a tokenizer.json's pre-tokenizer."""
    steps = _describe(document.get("pre_tokenizer"), path)
    names = [name for name, known in PRE_TOKENIZERS.items() if known.steps == steps]
    if not names:
        raise TokenizerError(
            "is not known to the engine",
            path=path,
            item="pre_tokenizer",
            found=str(document.get("pre_tokenizer"))[:200],
            expected=f"the pre-tokenizer of {', '.join(PRE_TOKENIZERS)}",
        )
    for name in names:
        if PRE_TOKENIZERS[name].ignore_merges == ignore_merges:
            return name
    raise TokenizerError(
        "is not supported with this pre-tokenizer",
        path=path,
        item="model.ignore_merges",
        found=ignore_merges,
        expected=f"{not ignore_merges}, as the engine has it for {names[0]}",
    )


def _check_model(model: Mapping[str, Any], document: Mapping[str, Any], path: Path) -> None:
    kind = model.get("type")
    if kind != "BPE" or model.get("byte_fallback"):
        found = "BPE with byte fallback" if kind == "BPE" else repr(kind)
        raise TokenizerError(
            "is not a byte-level BPE",
            path=path,
            item="model.type",
            found=found,
            hint="for a SentencePiece model, add its tokenizer.model to the folder",
        )
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise TokenizerError("is not supported", path=path, item=f"model.{key}", found=repr(model[key]))


def _normalizer(node: Any, path: Path) -> tuple[str, ...]:
    """Steps of tokenizer.json's normalizer, names of `UNICODE_STEPS`."""
    if node is None:
        return ()
    kind = node.get("type") if isinstance(node, dict) else None
    if kind in UNICODE_STEPS:
        return (str(kind),)
    steps = node.get("normalizers") if kind == "Sequence" else None
    if not isinstance(steps, list) or any(isinstance(step, dict) and "normalizers" in step for step in steps):
        raise TokenizerError(
            "is not supported",
            path=path,
            item="normalizer",
            found=str(node)[:200],
            expected=f"none, or of {', '.join(UNICODE_STEPS)}",
        )
    return tuple(name for step in steps for name in _normalizer(step, path))


def _describe(node: Any, path: Path) -> Steps:
    """A pre-tokenizer as `PreTokenizer.steps`; other settings make it unknown."""
    if not isinstance(node, dict):
        return ()
    kind = node.get("type")
    if kind == "Sequence":
        parts = node.get("pretokenizers")
        if not isinstance(parts, list) or any(
            isinstance(part, dict) and part.get("type") == kind for part in parts
        ):
            raise TokenizerError("is damaged", path=path, item="pre_tokenizer.pretokenizers")
        return tuple(step for part in parts for step in _describe(part, path))
    if kind == "Split" and node.get("behavior") == "Isolated" and not node.get("invert"):
        pattern = node.get("pattern")
        return (("split", pattern.get("Regex") if isinstance(pattern, dict) else None),)
    if kind == "Digits":
        return (("digits", node.get("individual_digits")),)
    if kind == "ByteLevel" and not node.get("add_prefix_space"):
        return (("bytes", node.get("use_regex", True)),)
    return (("unknown", str(kind)),)


def _json_merges(merges: Any, vocab: dict[str, int], path: Path) -> list[str]:
    if not isinstance(merges, list) or not merges:
        raise TokenizerError(
            "has no merges", path=path, item="model.merges", hint="the engine needs at least one"
        )
    result = []
    for number, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        result.append(_merge(pair, vocab, path, f"model.merges[{number}]"))
    return result


def load_vocab_and_merges(folder: Path, vocab_size: int, tokenizer_config: Mapping[str, Any]) -> Vocabulary:
    """Read vocab.json and merges.txt, and the tokens that other files in the folder add.

    Args:
        folder: the checkpoint.
        vocab_size: number of tokens of the model.
        tokenizer_config: content of its tokenizer_config.json.

    Raises:
        TokenizerError: a file is missing or damaged, or the class of the tokenizer is unknown.
    """
    path, merges_path = folder / "vocab.json", folder / "merges.txt"
    for file in (path, merges_path):
        if not file.is_file():
            raise TokenizerError(
                "not found", path=file, hint="add it; vocab.json and merges.txt need each other"
            )
    vocab = read_vocab_map(read_tokenizer_file(path), path)
    table = TokenTable(vocab_size)
    for text, token_id in vocab.items():
        table.put(token_id, text, TokenType.NORMAL, path)
    for token in read_added_tokens(folder, tokenizer_config, {}):
        table.put_added(token)
    merges = _text_merges(merges_path, vocab)
    pre, normalizer = _parts_of_class(folder, tokenizer_config)
    return Vocabulary("gpt2", pre, table, merges=merges, normalizer=normalizer)


def _parts_of_class(folder: Path, tokenizer_config: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Pre-tokenizer and normalization of the tokenizer's class, absent from these files; else Qwen2's."""
    path = folder / "tokenizer_config.json"
    name = tokenizer_config.get("tokenizer_class") or "Qwen2Tokenizer"
    parts = _TOKENIZER_CLASSES.get(str(name).removesuffix("Fast"))
    if parts is None:
        raise TokenizerError(
            "is not known to the engine",
            path=path,
            item="tokenizer_class",
            found=repr(name),
            expected=" or ".join(_TOKENIZER_CLASSES),
            hint="add a tokenizer.json, which describes the pre-tokenizer, to the folder",
        )
    return parts


def _text_merges(path: Path, vocab: dict[str, int]) -> list[str]:
    merges = []
    for number, line in enumerate(read_text_input(path, TokenizerError).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        merges.append(_merge(line.split(" "), vocab, path, f"line {number}"))
    if not merges:
        raise TokenizerError("has no merges", path=path, hint="fetch this file again")
    return merges


def _merge(pair: Any, vocab: dict[str, int], path: Path, item: str) -> str:
    if (
        not isinstance(pair, list)
        or len(pair) != 2
        or not all(isinstance(part, str) and part for part in pair)
    ):
        raise TokenizerError(
            "is not a merge",
            path=path,
            item=item,
            found=str(pair)[:80],
            expected="two tokens",
            hint="fetch this file again",
        )
    for text in (*pair, "".join(pair)):
        if text not in vocab:
            raise TokenizerError(
                "merges a token that is not in the vocabulary",
                path=path,
                item=item,
                found=repr(text),
                hint="use files of one release",
            )
    return " ".join(pair)
