"""Byte-level BPE: tokenizer.json, or vocab.json and merges.txt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sb_edge.convert.vocab.tokens import (
    TokenTable,
    TokenType,
    Vocabulary,
    added_token,
    read_added_tokens,
    read_tokenizer_file,
    read_vocab_map,
)
from sb_edge.util.errors import TokenizerError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_PRE_TOKENIZERS = {
    (("split", _QWEN2), ("bytes", False)): "qwen2",
    (("split", _LLAMA3), ("bytes", False)): "llama-bpe",
    (("digits", True), ("bytes", True)): "smollm",
    (("bytes", True),): "gpt-2",
}
"""The engine's name (`tokenizer.ggml.pre`) of a pre-tokenizer in tokenizer.json."""

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}

_TOKENIZER_CLASSES = {"Qwen2Tokenizer": "qwen2", "GPT2Tokenizer": "gpt-2"}
_SUPPORTED = "the pre-tokenizer of qwen2, llama-bpe, smollm or gpt-2"


def pre_tokenizer_json(pre: str) -> dict[str, Any] | None:
    """The pre-tokenizer of tokenizer.json for a `tokenizer.ggml.pre`; None if it is unknown."""
    steps = next((steps for steps, name in _PRE_TOKENIZERS.items() if name == pre), None)
    if steps is None:
        return None
    nodes: list[dict[str, Any]] = []
    for kind, value in steps:
        if kind == "split":
            nodes.append(
                {"type": "Split", "pattern": {"Regex": value}, "behavior": "Isolated", "invert": False}
            )
        elif kind == "digits":
            nodes.append({"type": "Digits", "individual_digits": value})
        else:
            nodes.append({**_BYTES, "use_regex": value})
    return {"type": "Sequence", "pretokenizers": nodes}


def load_tokenizer_json(path: Path, vocab_size: int, tokenizer_config: Mapping[str, Any]) -> Vocabulary:
    """Read a tokenizer.json that holds a byte-level BPE, and the tokens that other files in its folder add.

    Args:
        path: the tokenizer.json.
        vocab_size: number of tokens of the model.
        tokenizer_config: content of tokenizer_config.json.

    Raises:
        TokenizerError: the file is damaged, or the engine does not support its model, pre-tokenizer or
            normalizer.
    """
    document = read_tokenizer_file(path)
    model = document.get("model")
    if not isinstance(model, dict):
        raise TokenizerError("has no model", path=path, item="model", hint="fetch this file again")
    _check_model(model, document, path)
    pre = _PRE_TOKENIZERS.get(_describe(document.get("pre_tokenizer"), path))
    if pre is None:
        raise TokenizerError(
            "is not known to the engine",
            path=path,
            item="pre_tokenizer",
            found=str(document.get("pre_tokenizer"))[:200],
            expected=_SUPPORTED,
        )
    vocab = read_vocab_map(model.get("vocab"), path)
    table = TokenTable(vocab_size)
    for text, token_id in vocab.items():
        table.put(token_id, text, TokenType.NORMAL, path)
    added = document.get("added_tokens") or []
    if not isinstance(added, list):
        raise TokenizerError("is not a list", path=path, item="added_tokens")
    for entry in added:
        table.put_added(added_token(entry, entry.get("id") if isinstance(entry, dict) else None, path))
    for token in read_added_tokens(path.parent, tokenizer_config):
        table.put_added(token)
    merges = _json_merges(model.get("merges"), vocab, path)
    add_bos, add_eos = _post_processor(document)
    return Vocabulary("gpt2", pre, table, add_bos=add_bos, add_eos=add_eos, merges=merges)


def _post_processor(document: Mapping[str, Any]) -> tuple[bool, bool]:
    """True for each of begin and end if tokenizer.json's template adds a token there."""
    processor = document.get("post_processor")
    if not isinstance(processor, dict):
        return False, False
    for step in processor.get("processors", [processor]):
        single = step.get("single") if isinstance(step, dict) else None
        if isinstance(single, list) and single:
            return "SpecialToken" in single[0], "SpecialToken" in single[-1]
    return False, False


def _check_model(model: dict[str, Any], document: dict[str, Any], path: Path) -> None:
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
    normalizer = document.get("normalizer")
    # The engine leaves Qwen2's NFC to its caller; other normalizers would change the tokens.
    if normalizer is not None and (not isinstance(normalizer, dict) or normalizer.get("type") != "NFC"):
        raise TokenizerError(
            "is not known to the engine",
            path=path,
            item="normalizer",
            found=str(normalizer)[:200],
            expected="none or NFC",
        )


def _describe(node: Any, path: Path) -> tuple[tuple[str, object], ...]:
    """A pre-tokenizer as a key of `_PRE_TOKENIZERS`; other settings make it unknown."""
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
    if not isinstance(merges, list):
        raise TokenizerError("has no merges", path=path, item="model.merges", hint="fetch this file again")
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
    for token in read_added_tokens(folder, tokenizer_config):
        table.put_added(token)
    merges = _text_merges(merges_path, vocab)
    return Vocabulary("gpt2", _pre_of_class(folder, tokenizer_config), table, merges=merges)


def _pre_of_class(folder: Path, tokenizer_config: Mapping[str, Any]) -> str:
    """The pre-tokenizer of the tokenizer's class, as these files name none; without a class: Qwen2's."""
    path = folder / "tokenizer_config.json"
    name = tokenizer_config.get("tokenizer_class") or "Qwen2Tokenizer"
    pre = _TOKENIZER_CLASSES.get(str(name).removesuffix("Fast"))
    if pre is None:
        raise TokenizerError(
            "is not known to the engine",
            path=path,
            item="tokenizer_class",
            found=repr(name),
            expected=" or ".join(_TOKENIZER_CLASSES),
            hint="add a tokenizer.json, which describes the pre-tokenizer, to the folder",
        )
    return pre


def _text_merges(path: Path, vocab: dict[str, int]) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            "is not valid UTF-8", path=path, found=str(error), hint="fetch this file again"
        ) from None
    merges = []
    for number, line in enumerate(lines, 1):
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
