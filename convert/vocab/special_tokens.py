"""The special tokens that a checkpoint names, in the order in which transformers decides on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.convert.vocab.chat_template import template_text
from sb_edge.convert.vocab.tokens import ChatTemplate, TokenTable, is_token_id, read_tokenizer_file
from sb_edge.util.errors import TokenizerError

_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
"""Tokens that end a turn in chat templates: ChatML, Llama 3, Gemma, Phi 3."""

_NAMES = ("bos", "eos", "unk", "pad")

_CLASS_DEFAULTS = {
    "LlamaTokenizer": {"bos": "<s>", "eos": "</s>"},
    "GPT2Tokenizer": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "Qwen2Tokenizer": {"eos": "<|endoftext|>"},
}
"""Special tokens of transformers' tokenizer classes where the files name none."""


def special_tokens(
    folder: Path,
    tokenizer_config: Mapping[str, Any],
    config: SpikingBrainConfig,
    table: TokenTable,
    template: ChatTemplate | None,
    *,
    own: Mapping[str, int],
) -> dict[str, int]:
    """Numbers of the special tokens by "bos", "eos", "eot", "eom", "unk" and "pad"; absent ones do not exist.

    Names come from special_tokens_map.json (unless tokenizer_config.json has `added_tokens_decoder`), from
    tokenizer_config.json, from the tokenizer's class, from `own`, and bos and eos from config.json. A null in
    the files means that there is no such token. `eot` and `eom` are further tokens that end an answer: that
    of the chat template's turns, and those that generation_config.json, else config.json, lists.

    Args:
        folder: the checkpoint.
        tokenizer_config: content of its tokenizer_config.json.
        config: its config.json.
        table: the tokens.
        template: the chat template.
        own: numbers that the tokenizer's model gives.

    Raises:
        TokenizerError: a named token does not exist, more than three tokens end an answer, or none does and
            there is no unused number to tell the engine so.
    """
    named, path = _named(folder, tokenizer_config)
    special: dict[str, int] = {}
    defaults = _CLASS_DEFAULTS.get(str(tokenizer_config.get("tokenizer_class")).removesuffix("Fast"), {})
    for name in _NAMES:
        if name in named:
            text = named[name]
            if text is not None:
                special[name] = _number(text, table, path, f"{name}_token")
        elif defaults.get(name) in table.ids:
            special[name] = table.ids[defaults[name]]
        elif name in own:
            special[name] = own[name]
        elif name == "bos" and config.bos_token_id is not None:
            special[name] = _checked(config.bos_token_id, table, folder / "config.json", "bos_token_id")
    ends = _listed_ends(folder, config, table)
    if "eos" not in special and ends:
        special["eos"] = ends[0]
    if "eos" not in special and table.unused() is None:
        raise TokenizerError(
            "names no token that ends a text", path=path, item="eos_token", hint="add this key"
        )
    return special | _further_ends([*_turn_ends(table, template), *ends], special.get("eos"), folder)


def _named(folder: Path, tokenizer_config: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """Texts of the special tokens that the tokenizer's files name (null: none), and the last file read."""
    path = folder / "tokenizer_config.json"
    names = dict(tokenizer_config)
    # transformers reads the map only in folders of the time before `added_tokens_decoder`; there it wins.
    if "added_tokens_decoder" not in tokenizer_config and (folder / "special_tokens_map.json").is_file():
        path = folder / "special_tokens_map.json"
        names |= read_tokenizer_file(path)
    entries = {name: names[f"{name}_token"] for name in _NAMES if f"{name}_token" in names}
    texts = {name: each.get("content") if isinstance(each, dict) else each for name, each in entries.items()}
    return texts, path


def _number(text: Any, table: TokenTable, path: Path, item: str) -> int:
    if not isinstance(text, str) or text not in table.ids:
        raise TokenizerError(
            "is not in the vocabulary", path=path, item=item, found=repr(text)[:80], hint="correct this key"
        )
    return table.ids[text]


def _checked(token_id: Any, table: TokenTable, path: Path, item: str) -> int:
    if not is_token_id(token_id) or token_id >= table.size:
        raise TokenizerError(
            "is beyond the vocabulary",
            path=path,
            item=item,
            found=repr(token_id)[:80],
            expected=f"below {table.size}",
        )
    return int(token_id)


def _listed_ends(folder: Path, config: SpikingBrainConfig, table: TokenTable) -> list[int]:
    """The tokens that end an answer by generation_config.json or, as in transformers, else by config.json."""
    path = folder / "generation_config.json"
    listed: Any = read_tokenizer_file(path).get("eos_token_id")
    if listed is None:
        path, listed = folder / "config.json", config.eos_token_id
    listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
    return [_checked(token_id, table, path, "eos_token_id") for token_id in listed]


def _turn_ends(table: TokenTable, template: ChatTemplate | None) -> list[int]:
    """The token that ends a turn in the chat template, if there is one.

    The public SFT release has ChatML with eos `<|endoftext|>`, which would not stop at `<|im_end|>`.
    """
    text = template_text(template)
    return [table.ids[token] for token in _END_OF_TURN if token in text and token in table.ids][:1]


def _further_ends(ends: Iterable[int], eos: int | None, folder: Path) -> dict[str, int]:
    further = [token_id for token_id in dict.fromkeys(ends) if token_id != eos]
    if len(further) > 2:
        raise TokenizerError(
            "too many tokens end an answer",
            path=folder / "generation_config.json",
            item="eos_token_id",
            found=len(further) + 1,
            expected="at most 3, for which GGUF has keys",
            hint="leave out those that the model never writes",
        )
    return dict(zip(("eot", "eom"), further, strict=False))


def tokens_before_text(document: Mapping[str, Any], path: Path) -> list[int]:
    """Numbers of the tokens that tokenizer.json's post-processor puts before a text.

    Tokens behind a text are not told: a prompt is there to be continued.

    Args:
        document: content of tokenizer.json.
        path: the tokenizer.json, for messages.

    Raises:
        TokenizerError: the post-processor is damaged.
    """
    processor = document.get("post_processor") or {}
    try:
        for step in processor.get("processors", [processor]):
            if step.get("type") in ("BertProcessing", "RobertaProcessing"):
                return [_id(step["cls"][1])]
            if step.get("type") == "TemplateProcessing":
                return _before(step["single"], step.get("special_tokens", {}))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise TokenizerError(
            "is damaged", path=path, item="post_processor", found=str(processor)[:80]
        ) from None
    return []


def _before(template: Sequence[Mapping[str, Any]], tokens: Mapping[str, Any]) -> list[int]:
    found: list[int] = []
    for part in template:
        if "SpecialToken" not in part:
            return found
        found += map(_id, tokens[part["SpecialToken"]["id"]]["ids"])
    return found


def _id(value: Any) -> int:
    if not is_token_id(value):
        raise ValueError(value)
    return int(value)
