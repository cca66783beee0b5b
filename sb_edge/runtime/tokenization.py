"""Text to tokens as the tokenizer's own library cuts it: the parts that the engine leaves to its caller.

The engine applies no Unicode normalization, puts a space before every text of a SentencePiece vocabulary,
even one that continues another, ends the process at a character that such a vocabulary lacks, and takes
tokens 11, 1 and 2 for bos and eos where a file names none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from sb_edge.arch.text_normalizer import read_normalizer
from sb_edge.gguf.reader import GgufHeader
from sb_edge.runtime.binding import library
from sb_edge.runtime.plain_text import unmarked
from sb_edge.util.errors import InferenceError

SPACE_PREFIX_KEY = "tokenizer.ggml.add_space_prefix"

_UNKNOWN, _UNUSED, _CONTROL, _USER_DEFINED = 1, 2, 8, 16
"""llama.cpp's attributes of tokens."""
_SPECIAL = _UNKNOWN | _CONTROL | _USER_DEFINED


class Tokenization:
    """The vocabulary of a loaded model, for reading text.

    Args:
        vocab: the engine's vocabulary, loaded with `SPACE_PREFIX_KEY` false.
        header: the header of its GGUF.
    """

    def __init__(self, vocab: Any, header: GgufHeader) -> None:
        self._vocab = vocab
        self._header = header
        self._keys = header.metadata
        self._is_spm = is_sentencepiece(header)
        self._space_prefix = self._is_spm and self._keys.get(SPACE_PREFIX_KEY, True) is not False

    def special(self, kind: str) -> int | None:
        """The number of the "bos", "eos", "eot", "unknown" or "padding" token; None if there is none."""
        get = getattr(library(), f"llama_vocab_{kind}", None)
        key = self._keys.get(f"tokenizer.ggml.{kind}_token_id", -1)
        token = int(key if get is None else get(self._vocab))
        if not 0 <= token < library().llama_vocab_n_tokens(self._vocab):
            return None
        return None if self._stands_for_none(kind, token) else token

    def is_end(self, token: int) -> bool:
        """True for a token that ends an answer."""
        lib = library()
        if token == lib.llama_vocab_eos(self._vocab) and self._stands_for_none("eos", token):
            return False
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    def _stands_for_none(self, kind: str, token: int) -> bool:
        """True for an unused number, and for the engine's default where it is an ordinary word."""
        attributes = self._attributes(token)
        if f"tokenizer.ggml.{kind}_token_id" in self._keys:
            return attributes == _UNUSED
        return not attributes & (_CONTROL | _USER_DEFINED)

    def _attributes(self, token: int) -> int:
        return int(library().llama_vocab_get_attr(self._vocab, token))

    def encode(
        self, text: str, *, parse_special: bool, after: int | None = None, is_marked: bool = False
    ) -> list[int]:
        """Tokens of a text, without special tokens around it.

        Args:
            text: any Unicode text.
            parse_special: read control tokens written out in the text as themselves.
            after: the token that the text follows; None: it is the first text.
            is_marked: control tokens with a mark of `plain_text.marked` are text.

        Raises:
            InferenceError: a surrogate, which no UTF-8 text can hold.
        """
        require_unicode(text)
        if not self._is_spm and not is_marked and self._normalized(text, False) == text:
            return self._engine_tokens(text, parse_special)
        tokens: list[int] = []
        follows_text = after is not None and not self._attributes(after) & _SPECIAL
        for part in self._parts(text, parse_special):
            if isinstance(part, int):
                tokens.append(part)
                follows_text = False
                continue
            plain = self._normalized(unmarked(part) if is_marked else part, follows_text)
            if self._space_prefix and not follows_text and plain:
                plain = " " + plain
            tokens += self._known_tokens(plain)
            follows_text = True
        return tokens

    @cached_property
    def control_texts(self) -> list[str]:
        """Texts of the control tokens, the longest first."""
        return [text for text, _, is_control in self._specials if is_control]

    @cached_property
    def _specials(self) -> list[tuple[str, int, bool]]:
        """Text, number, and whether it is a control token, of each special token; the longest first."""
        lib, vocab = library(), self._vocab
        attributes_of = lib.llama_vocab_get_attr  # asked for every token; the engine corrects a file's types
        found = []
        for token in range(lib.llama_vocab_n_tokens(vocab)):
            attributes = attributes_of(vocab, token)
            if attributes & _SPECIAL:
                text = (lib.llama_vocab_get_text(vocab, token) or b"").decode("utf-8", "replace")
                found.append((text, token, not attributes & _USER_DEFINED))
        return sorted(found, key=lambda special: -len(special[0].encode()))

    def _parts(self, text: str, parse_special: bool) -> Iterator[str | int]:
        """Special tokens and the texts between them, in the engine's order of precedence."""
        parts: list[str | int] = [text] if text else []
        for special, token, is_control in self._specials:
            if special and special in text and (parse_special or not is_control):
                parts = [piece for part in parts for piece in _split(part, special, token)]
        return iter(parts)

    def _known_tokens(self, text: str) -> Iterator[int]:
        """Tokens of a text without special tokens; a run of unknown characters is one unknown token."""
        if self._unknown is None:
            yield from self._engine_tokens(text, False)
            return
        unknown = self.special("unknown")
        for number, piece in enumerate(self._unknown.split(text.replace(" ", "\u2581"))):
            if number % 2:
                yield from () if unknown is None else (unknown,)
            else:
                yield from self._engine_tokens(piece, False)

    @cached_property
    def _unknown(self) -> re.Pattern[str] | None:
        """Runs of characters that a SentencePiece vocabulary without bytes lacks; None: it can spell all."""
        if not self._is_spm or "<0x00>" in self._keys["tokenizer.ggml.tokens"]:
            return None
        known = "".join(re.escape(text) for text in self._keys["tokenizer.ggml.tokens"] if len(text) == 1)
        return re.compile(f"([^{known}]+)", re.DOTALL)

    @cached_property
    def _normalizer(self) -> Callable[[str], str] | None:
        return read_normalizer(self._header)

    def _normalized(self, text: str, follows_text: bool) -> str:
        if self._normalizer is None:
            return text
        # A space at the start of a text may be removed, but not one between two texts.
        return self._normalizer("." + text)[1:] if follows_text else self._normalizer(text)

    def _engine_tokens(self, text: str, parse_special: bool) -> list[int]:
        lib = library()
        data = text.encode("utf-8")
        size = len(data) + 16
        while True:
            tokens = (lib.llama_token * size)()
            count = lib.llama_tokenize(self._vocab, data, len(data), tokens, size, False, parse_special)
            if count >= 0:
                return list(tokens[:count])
            size = -count


def is_sentencepiece(header: GgufHeader) -> bool:
    """True for a GGUF with a SentencePiece vocabulary."""
    return header.metadata.get("tokenizer.ggml.model") == "llama"


def require_unicode(text: str) -> None:
    """Refuse a text that UTF-8 cannot hold, as bytes that are not UTF-8 make one on a command line.

    Raises:
        InferenceError: it has half a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = repr(text[error.start : error.end])[:40]
        raise InferenceError("the text is not valid UTF-8", found=found) from None


def _split(part: str | int, special: str, token: int) -> Iterator[str | int]:
    if isinstance(part, int):
        yield part
        return
    for number, piece in enumerate(part.split(special)):
        if number:
            yield token
        if piece:
            yield piece
