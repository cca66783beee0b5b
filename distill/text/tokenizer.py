"""The base's own tokenizer, from its tokenizer.json or the vocabulary in its GGUF."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend

from sb_edge.convert.checkpoint.base_model import BaseModelReader
from sb_edge.distill.text.sources import Document
from sb_edge.util.errors import TokenizerError
from sb_edge.util.hashes import sha256_of
from sb_edge.util.text_files import decode_text

FILE = "tokenizer.json"

TEXT_TYPE = np.dtype([("token", np.uint32), ("counts", np.uint8)])
"""A token, and how the prediction of the next one counts in training."""

PLAIN, ANSWER = 1, 2
"""Values of `counts`; 0: not at all."""


class Tokenizer:
    """Text to tokens.

    Args:
        base: whose tokenizer.

    Attributes:
        sha256: Hash of the tokenizer.json.
        end: the token between documents.

    Raises:
        TokenizerError, GgufError: the base has no tokenizer.json, or a vocabulary that cannot become one.
    """

    def __init__(self, base: BaseModelReader) -> None:
        with tempfile.TemporaryDirectory() as folder:
            base.write_tokenizer(Path(folder))
            path = Path(folder) / FILE
            if not path.is_file():
                raise TokenizerError(
                    "is missing", path=base.path, item=FILE, hint="save the base's fast tokenizer there"
                )
            text = decode_text(path.read_bytes(), base.path / FILE, TokenizerError)
            try:
                # The library raises plain Exceptions, with what it found.
                self._backend = Backend.from_str(text)
            except Exception as error:
                raise TokenizerError("cannot be read", path=base.path, item=FILE, found=str(error)) from None
            self.sha256 = sha256_of(path)
            self.end = self._end_of(base)

    def _end_of(self, base: BaseModelReader) -> int:
        """The end-of-text token: of raw text, where there is one, and not of a chat's turn."""
        for text in ("<|endoftext|>", "<|end_of_text|>", "</s>"):
            token = self._backend.token_to_id(text)
            if token is not None:
                return int(token)
        eos = base.shape.eos_token_id
        if isinstance(eos, list):
            eos = eos[0] if eos else None
        if eos is None:
            raise TokenizerError(
                "names no end-of-text token",
                path=base.path,
                item="eos_token_id",
                hint="add it to config.json",
            )
        return eos

    def document(self, document: Document) -> NDArray[np.void]:
        """The tokens of a text and the end token, [n] of `TEXT_TYPE`.

        What looks like a special token in the text becomes one.
        """
        encoded = self._backend.encode(document.text, add_special_tokens=False)
        text = np.zeros(len(encoded.ids) + 1, TEXT_TYPE)
        text["token"] = [*encoded.ids, self.end]
        if not document.answers:
            text["counts"] = PLAIN
            return text
        first, last = np.array(encoded.offsets, np.int64).reshape(-1, 2).T
        for start, end in document.answers:
            known = ((first < end) & (last > start)).nonzero()[0]
            text["counts"][known[known > 0] - 1] = ANSWER
        return text

    def token(self, text: str) -> int | None:
        """The number of a token by how it is written; None if there is no such token."""
        found: int | None = self._backend.token_to_id(text)
        return found

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without special tokens around it."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens, special ones written out."""
        return str(self._backend.decode(tokens, skip_special_tokens=False))
