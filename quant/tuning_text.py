"""Texts that something is tuned on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sb_edge.runtime.session import Model
from sb_edge.util.errors import SpikeError

DEFAULT_TOKENS = 2048
MIN_TOKENS = 64
"""Fewer tell nothing about perplexity."""


@dataclass(frozen=True)
class Text:
    """Tokens of a text: its first ones.

    Attributes:
        name: the file's name without its folder, or "held-out".
        tokens: at least `MIN_TOKENS`.
    """

    name: str
    tokens: tuple[int, ...]


def cut_text(model: Path, text: str, name: str, max_tokens: int = DEFAULT_TOKENS) -> Text:
    """The first tokens of a text.

    Args:
        model: a GGUF with a vocabulary; its weights are not loaded.
        text: any text.
        name: for messages and results.
        max_tokens: Maximum number of tokens.

    Raises:
        InferenceError: the model has no vocabulary.
        SpikeError: fewer than `MIN_TOKENS` tokens.
    """
    with Model(model, vocab_only=True) as vocabulary:
        return require_length(Text(name, tuple(vocabulary.first_tokens(text, max_tokens))))


def require_length(text: Text) -> Text:
    """Refuse a text that is too short.

    Raises:
        SpikeError: fewer than `MIN_TOKENS` tokens.
    """
    if len(text.tokens) < MIN_TOKENS:
        raise SpikeError(
            "the text is too short to tune on",
            path=text.name,
            found=f"{len(text.tokens)} tokens",
            expected=f"at least {MIN_TOKENS}, better a thousand",
        )
    return text
