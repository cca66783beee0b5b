"""Common parts of Hugging Face tokenizers: JSON files, added tokens, the table of tokens, the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from sb_edge.util.errors import TokenizerError
from sb_edge.util.json_files import parse_json_object

ChatTemplate = str | list[dict[str, str]]


class TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class AddedToken:
    """A token outside the learned vocabulary.

    Attributes:
        token_id: number of the token.
        text: text of the token in a prompt.
        special: the token never stands for ordinary text.
        path: the file that adds it.
    """

    token_id: int
    text: str
    special: bool
    path: Path

    @property
    def type(self) -> TokenType:
        """CONTROL if special by flag or by form (`<|...|>`), as in llama.cpp's converter."""
        looks_special = self.text.startswith("<|") and self.text.endswith("|>")
        looks_special = looks_special or self.text in ("<pad>", "<mask>")
        return TokenType.CONTROL if self.special or looks_special else TokenType.USER_DEFINED


@dataclass
class TokenTable:
    """Tokens by number; gaps up to the model's vocabulary size are filled with unused tokens.

    Attributes:
        size: vocabulary size of the model.
        texts: texts of the tokens in the GGUF.
        types: types of the tokens.
        ids: number by text, without unused tokens.
    """

    size: int
    texts: list[str] = field(init=False)
    types: list[TokenType] = field(init=False)
    ids: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.texts = [f"[PAD{number}]" for number in range(self.size)]
        self.types = [TokenType.UNUSED] * self.size

    def put(self, token_id: int, text: str, kind: TokenType, path: Path) -> None:
        """Set a token. An added token may change the type of a learned token of the same number and text.

        Raises:
            TokenizerError: the number is beyond the model's vocabulary, or another token has it.
        """
        if token_id >= self.size:
            raise TokenizerError(
                "has a number beyond the model's vocabulary",
                path=path,
                item=repr(text),
                found=token_id,
                expected=f"below vocab_size {self.size}",
                hint="use config.json and tokenizer of one release",
            )
        taken = self.types[token_id] != TokenType.UNUSED and self.texts[token_id] != text
        if taken or self.ids.get(text, token_id) != token_id:
            found = self.texts[token_id] if taken else self.ids[text]
            raise TokenizerError(
                "conflicts with another token", path=path, item=f"{text!r} = {token_id}", found=found
            )
        self.texts[token_id], self.types[token_id] = text, kind
        self.ids[text] = token_id

    def put_added(self, token: AddedToken) -> None:
        """Set an added token.

        Raises:
            TokenizerError: as `put`.
        """
        self.put(token.token_id, token.text, token.type, token.path)


@dataclass(frozen=True)
class Vocabulary:
    """Content of the `tokenizer.*` keys of a GGUF.

    Attributes:
        model: "gpt2" (byte-level BPE) or "llama" (SentencePiece).
        pre: name of the pre-tokenizer.
        table: tokens with types and numbers.
        scores: scores of the tokens; only SentencePiece.
        merges: "left right" pairs, by rank; only BPE.
        special: token number by "bos", "eos", "eot", "unk", "pad".
        add_bos: a prompt begins with the bos token.
        add_eos: a prompt ends with the eos token.
        add_space_prefix: a prompt begins with a space; only SentencePiece.
        chat_template: Jinja template, or a list of named templates.
    """

    model: str
    pre: str
    table: TokenTable
    special: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    scores: list[float] | None = None
    merges: list[str] = field(default_factory=list)
    add_space_prefix: bool | None = None
    chat_template: ChatTemplate | None = None


def read_tokenizer_file(path: Path) -> dict[str, Any]:
    """Read a tokenizer's JSON file; an absent one is empty.

    Raises:
        TokenizerError: not valid JSON (the line is named) or not an object.
    """
    return parse_json_object(path.read_bytes(), path, TokenizerError) if path.is_file() else {}


def is_token_id(value: object) -> bool:
    """True for an integer >= 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def read_vocab_map(vocab: Any, path: Path) -> dict[str, int]:
    """Check a map of tokens to numbers.

    Raises:
        TokenizerError: not a map, or a number is invalid or used twice.
    """
    if not isinstance(vocab, dict) or not vocab:
        raise TokenizerError("has no vocabulary", path=path, expected="tokens and their numbers")
    by_id: dict[int, str] = {}
    for text, token_id in vocab.items():
        if not is_token_id(token_id):
            raise TokenizerError("has no valid number", path=path, item=repr(text), found=repr(token_id))
        if token_id in by_id:
            raise TokenizerError(
                "has the number of another token",
                path=path,
                item=repr(text),
                found=f"{token_id}: {by_id[token_id]!r}",
            )
        by_id[token_id] = text
    return vocab


def read_added_tokens(folder: Path, tokenizer_config: Mapping[str, Any]) -> list[AddedToken]:
    """The tokens that added_tokens.json and tokenizer_config.json add, by ascending number; the latter wins.

    Args:
        folder: the checkpoint.
        tokenizer_config: content of its tokenizer_config.json.

    Raises:
        TokenizerError: an entry is damaged.
    """
    tokens: dict[int, AddedToken] = {}
    path = folder / "added_tokens.json"
    for text, token_id in read_tokenizer_file(path).items():
        if not is_token_id(token_id):
            raise TokenizerError("has no valid number", path=path, item=repr(text), found=repr(token_id))
        tokens[token_id] = AddedToken(token_id, text, False, path)
    path = folder / "tokenizer_config.json"
    decoder = tokenizer_config.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise TokenizerError("is not a JSON object", path=path, item="added_tokens_decoder")
    for number, entry in decoder.items():
        if not number.isascii() or not number.isdecimal():
            raise TokenizerError("is not a token number", path=path, item=f"added_tokens_decoder.{number}")
        tokens[int(number)] = added_token(entry, int(number), path)
    return [tokens[number] for number in sorted(tokens)]


def added_token(entry: Any, token_id: Any, path: Path) -> AddedToken:
    """Check one added token: an object with `content` and `special`.

    Raises:
        TokenizerError: text or number is missing.
    """
    text = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(text, str) or not text or not is_token_id(token_id):
        raise TokenizerError(
            "an added token is damaged", path=path, item=str(token_id), found=json.dumps(entry)[:80]
        )
    return AddedToken(token_id, text, entry.get("special") is True, path)
