"""Convert a checkpoint's tokenizer to GGUF keys: tokens, merges, special tokens, chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.convert.vocab.bpe import load_tokenizer_json, load_vocab_and_merges
from sb_edge.convert.vocab.spm import load_sentencepiece
from sb_edge.convert.vocab.tokens import ChatTemplate, TokenTable, Vocabulary, read_tokenizer_file
from sb_edge.util.errors import TokenizerError

_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
"""Tokens that end a turn in chat templates: ChatML, Llama 3, Gemma, Phi 3."""

NO_VOCABULARY = "no_vocab"


def load_vocabulary(folder: Path, config: SpikingBrainConfig) -> Vocabulary | None:
    """Read the tokenizer of a checkpoint folder; None if it has none.

    Order of precedence: tokenizer.model; tokenizer.json; vocab.json with merges.txt.

    Raises:
        TokenizerError: a file is damaged, is not supported, or does not fit the model.
    """
    tokenizer_config = read_tokenizer_file(folder / "tokenizer_config.json")
    template = _chat_template(folder, tokenizer_config)
    if (folder / "tokenizer.model").is_file():
        vocabulary = load_sentencepiece(folder / "tokenizer.model", config.vocab_size, tokenizer_config)
    elif (folder / "tokenizer.json").is_file():
        vocabulary = load_tokenizer_json(folder / "tokenizer.json", config.vocab_size, tokenizer_config)
    elif (folder / "vocab.json").is_file() or (folder / "merges.txt").is_file():
        vocabulary = load_vocab_and_merges(folder, config.vocab_size, tokenizer_config)
    else:
        return None
    special = _special_tokens(folder, tokenizer_config, config, vocabulary.table, template)
    stated = {flag: tokenizer_config.get(f"{flag}_token") for flag in ("add_bos", "add_eos")}
    flags: dict[str, Any] = {flag: value for flag, value in stated.items() if isinstance(value, bool)}
    return replace(vocabulary, special=vocabulary.special | special, chat_template=template, **flags)


def _special_tokens(
    folder: Path,
    tokenizer_config: Mapping[str, Any],
    config: SpikingBrainConfig,
    table: TokenTable,
    template: ChatTemplate | None,
) -> dict[str, int]:
    """Numbers of the special tokens, from tokenizer_config.json, else from config.json."""
    special: dict[str, int] = {}
    path = folder / "tokenizer_config.json"
    for name in ("bos", "eos", "unk", "pad"):
        entry = tokenizer_config.get(f"{name}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        if text is None:
            continue
        if text not in table.ids:
            raise TokenizerError(
                "is not in the vocabulary",
                path=path,
                item=f"{name}_token",
                found=repr(text),
                hint="correct this key",
            )
        special[name] = table.ids[text]
    eos = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    for name, token_id in (("bos", config.bos_token_id), ("eos", eos)):
        if token_id is not None and name not in special:
            if token_id >= table.size:
                raise TokenizerError(
                    "is beyond the vocabulary",
                    path=folder / "config.json",
                    item=f"{name}_token_id",
                    found=token_id,
                    expected=f"below {table.size}",
                )
            special[name] = token_id
    turn = _end_of_turn(table, template)
    if turn is not None and turn != special.get("eos"):
        special["eot"] = turn
    return special


def _end_of_turn(table: TokenTable, template: ChatTemplate | None) -> int | None:
    """The token that ends a turn in the chat template.

    The public SFT release has ChatML with eos `<|endoftext|>`, which would not stop at `<|im_end|>`.
    """
    text = template if isinstance(template, str) else "".join(item["template"] for item in template or [])
    return next((table.ids[token] for token in _END_OF_TURN if token in text and token in table.ids), None)


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
    template = tokenizer_config.get("chat_template")
    path = folder / "tokenizer_config.json"
    if template is None and (folder / "chat_template.jinja").is_file():
        path = folder / "chat_template.jinja"
        try:
            template = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError("is not valid UTF-8", path=path, found=str(error)) from None
    if template is None:
        return None
    named = isinstance(template, list) and all(
        isinstance(item, dict) and all(isinstance(item.get(key), str) for key in ("name", "template"))
        for item in template
    )
    if not named and not isinstance(template, str):
        raise TokenizerError(
            "is not a template",
            path=path,
            item="chat_template",
            found=str(template)[:80],
            expected="Jinja text",
        )
    return template or None


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary | None) -> None:
    """Add the `tokenizer.*` keys. Without a vocabulary, the engine reads its size from `vocab_size`."""
    if vocabulary is None:
        writer.add_tokenizer_model(NO_VOCABULARY)
        return
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.table.texts)
    writer.add_token_types([int(kind) for kind in vocabulary.table.types])
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for name, token_id in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(token_id)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
