"""Hugging Face tokenizer files: copied from a checkpoint, or written from a GGUF's byte-level BPE."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sb_edge.arch.text_normalizer import normalizer_steps
from sb_edge.convert.vocab.bpe import PRE_TOKENIZERS
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
    pre = PRE_TOKENIZERS.get(str(keys.get("tokenizer.ggml.pre")))
    if pre is None:
        raise GgufError(
            "unknown pre-tokenizer",
            path=path,
            item="tokenizer.ggml.pre",
            found=repr(keys.get("tokenizer.ggml.pre")),
            hint=_HINT,
        )
    types = [TokenType(int(kind)) for kind in keys.get("tokenizer.ggml.token_type", [])]
    special = {name: number for name in _SPECIAL if (number := _number(keys, name, tokens)) is not None}
    added = [
        {"id": number, "content": tokens[number], "special": kind is TokenType.CONTROL, **_VERBATIM}
        for number, kind in enumerate(types)
        if kind in _ADDED
    ]
    unused = {number for number, kind in enumerate(types) if kind is TokenType.UNUSED}
    add_bos = "bos" in special and bool(keys.get("tokenizer.ggml.add_bos_token", pre.add_bos))
    steps = [{"type": name} for name in normalizer_steps(header)]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": pre.to_json(),
        "post_processor": _begin(tokens[special["bos"]], special["bos"]) if add_bos else None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.ignore_merges,
            "vocab": {text: number for number, text in enumerate(tokens) if number not in unused},
            "merges": merges,
        },
    }
    _dump(folder / "tokenizer.json", document)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "add_bos_token": add_bos,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        },
    }
    config |= {f"{name}_token": tokens[special[name]] for name in special if name not in _ENDS}
    if keys.get("tokenizer.chat_template"):
        config["chat_template"] = keys["tokenizer.chat_template"]
    _dump(folder / "tokenizer_config.json", config)
    ends = [special[name] for name in ("eos", *_ENDS) if name in special]
    if len(ends) > 1:
        _dump(folder / "generation_config.json", {"eos_token_id": ends})


_VERBATIM = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
_ENDS = ("eot", "eom")
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot", "eom": "eom"}
"""Special tokens by transformers' names, with GGUF's."""


def _number(keys: Mapping[str, Any], name: str, tokens: Sequence[str]) -> int | None:
    """The number of a special token; None where the GGUF names none that exists."""
    number = keys.get(f"tokenizer.ggml.{_SPECIAL[name]}_token_id")
    return number if isinstance(number, int) and 0 <= number < len(tokens) else None


def _begin(bos: str, number: int) -> dict[str, Any]:
    """A post-processor that puts bos before a text."""
    special = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, second],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }


def _dump(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
