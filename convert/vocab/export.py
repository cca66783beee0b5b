"""Hugging Face tokenizer files: copied from a checkpoint, or written from a GGUF's byte-level BPE."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sb_edge.convert.vocab.bpe import pre_tokenizer_json
from sb_edge.convert.vocab.tokens import TokenType
from sb_edge.gguf.reader import GgufHeader
from sb_edge.util.errors import GgufError

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)

_HINT = "transplant the Hugging Face checkpoint instead, with its tokenizer files"
_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer files of a checkpoint into another folder."""
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_tokenizer(header: GgufHeader, path: Path, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, chat template included, into `folder`.

    Args:
        header: header of the GGUF.
        path: the GGUF, for messages.
        folder: folder of the files.

    Raises:
        GgufError: the vocabulary is not a byte-level BPE, or its pre-tokenizer is unknown.
    """
    keys = header.metadata
    tokens, merges = keys.get("tokenizer.ggml.tokens"), keys.get("tokenizer.ggml.merges")
    if (
        keys.get("tokenizer.ggml.model") != "gpt2"
        or not isinstance(tokens, list)
        or not isinstance(merges, list)
    ):
        raise GgufError(
            "has no byte-level BPE",
            path=path,
            item="tokenizer.ggml.model",
            found=repr(keys.get("tokenizer.ggml.model")),
            expected="'gpt2'",
            hint=_HINT,
        )
    pre = pre_tokenizer_json(str(keys.get("tokenizer.ggml.pre")))
    if pre is None:
        raise GgufError(
            "unknown pre-tokenizer",
            path=path,
            item="tokenizer.ggml.pre",
            found=repr(keys.get("tokenizer.ggml.pre")),
            hint=_HINT,
        )
    types = [TokenType(int(kind)) for kind in keys.get("tokenizer.ggml.token_type", [])]
    added = [
        {"id": number, "content": tokens[number], "special": kind is TokenType.CONTROL, **_VERBATIM}
        for number, kind in enumerate(types)
        if kind in _ADDED
    ]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pre,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {text: number for number, text in enumerate(tokens)},
            "merges": merges,
        },
    }
    _dump(folder / "tokenizer.json", document)
    _dump(folder / "tokenizer_config.json", _tokenizer_config(keys, tokens, added))


_VERBATIM = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _tokenizer_config(keys: dict[str, Any], tokens: list[str], added: list[dict[str, Any]]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "add_bos_token": bool(keys.get("tokenizer.ggml.add_bos_token", False)),
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        },
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = keys.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None and 0 <= number < len(tokens):
            config[f"{name}_token"] = tokens[number]
    template = keys.get("tokenizer.chat_template")
    if template:
        config["chat_template"] = template
    return config


def _dump(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
