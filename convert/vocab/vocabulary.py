"""Convert a checkpoint's tokenizer to GGUF keys: tokens, merges, special tokens, chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.arch.text_normalizer import NORMALIZER_KEY, normalizer_value
from sb_edge.convert.vocab.bpe import load_tokenizer_json, load_vocab_and_merges
from sb_edge.convert.vocab.chat_template import read_chat_template
from sb_edge.convert.vocab.special_tokens import special_tokens, tokens_before_text
from sb_edge.convert.vocab.spm import load_sentencepiece
from sb_edge.convert.vocab.tokens import TokenTable, Vocabulary, read_tokenizer_file
from sb_edge.util.errors import TokenizerError

NO_VOCABULARY = "no_vocab"


_FILES = ("tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt", "chat_template.jinja")


def load_vocabulary(folder: Path, config: SpikingBrainConfig) -> Vocabulary | None:
    """Read the tokenizer of a checkpoint folder; None if it has none.

    Order of precedence: tokenizer.model; tokenizer.json; vocab.json with merges.txt.

    Raises:
        TokenizerError: a file is damaged, is not supported, or does not fit the model.
    """
    for name in _FILES:
        if (folder / name).exists() and not (folder / name).is_file():
            raise TokenizerError("is not a regular file", path=folder / name, hint="fetch this file again")
    tokenizer_config = read_tokenizer_file(folder / "tokenizer_config.json")
    path = folder / "tokenizer.json"
    document = read_tokenizer_file(path)
    template = read_chat_template(folder, tokenizer_config)
    if (folder / "tokenizer.model").is_file():
        vocabulary = load_sentencepiece(
            folder / "tokenizer.model", config.vocab_size, tokenizer_config, document
        )
    elif path.is_file():
        vocabulary = load_tokenizer_json(document, path, config.vocab_size, tokenizer_config)
    elif (folder / "vocab.json").is_file() or (folder / "merges.txt").is_file():
        vocabulary = load_vocab_and_merges(folder, config.vocab_size, tokenizer_config)
    else:
        return None
    special = special_tokens(
        folder, tokenizer_config, config, vocabulary.table, template, own=vocabulary.special
    )
    special, add_bos = _bos(special, tokenizer_config, document, path, by_default=vocabulary.add_bos)
    return replace(vocabulary, special=special, add_bos=add_bos, chat_template=template)


def _bos(
    special: dict[str, int],
    tokenizer_config: Mapping[str, Any],
    document: Mapping[str, Any],
    path: Path,
    *,
    by_default: bool,
) -> tuple[dict[str, int], bool]:
    """The special tokens, and whether a text begins with bos.

    As in transformers, the post-processor of tokenizer.json decides where there is one; else `add_bos_token`.

    Args:
        special: numbers of the special tokens.
        tokenizer_config: content of tokenizer_config.json.
        document: content of tokenizer.json; empty: there is none.
        path: the tokenizer.json, for messages.
        by_default: whether a text begins with bos where the files leave it open.
    """
    if document.get("post_processor") is None and (by_default or not document):
        flag = tokenizer_config.get("add_bos_token")
        return special, "bos" in special and (flag if isinstance(flag, bool) else by_default)
    before = tokens_before_text(document, path)
    if before and before != [special.get("bos", before[0])]:
        raise TokenizerError(
            "puts other tokens before a text than bos",
            path=path,
            item="post_processor",
            found=before,
            expected=f"[{special['bos']}]" if "bos" in special else "one token",
            hint="the engine adds bos alone: correct the post-processor or bos_token",
        )
    return (special | {"bos": before[0]} if before else special), bool(before)


def _stand_ins(table: TokenTable) -> dict[str, int]:
    """An unused number for bos and for eos: without a key the engine takes an ordinary token for each."""
    unused = table.unused()
    return {} if unused is None else {"bos": unused, "eos": unused}


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary | None) -> None:
    """Add the `tokenizer.*` keys. Without a vocabulary, the engine reads its size from `vocab_size`."""
    if vocabulary is None:
        writer.add_tokenizer_model(NO_VOCABULARY)
        return
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_string(NORMALIZER_KEY, normalizer_value(vocabulary.normalizer))
    writer.add_token_list(vocabulary.table.texts)
    writer.add_token_types([int(kind) for kind in vocabulary.table.types])
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for name, token_id in (_stand_ins(vocabulary.table) | vocabulary.special).items():
        getattr(writer, f"add_{name}_token_id")(token_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    # A prompt is there to be continued, whatever the tokenizer puts behind a text that is complete.
    writer.add_add_eos_token(False)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
