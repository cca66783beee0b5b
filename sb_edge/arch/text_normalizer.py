"""Normalization of text before it is cut into tokens, which the engine leaves to its caller."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from sb_edge.arch import ARCH
from sb_edge.gguf.reader import GgufHeader
from sb_edge.util.errors import GgufError

NORMALIZER_KEY = f"{ARCH}.tokenizer.normalizer"
"""Steps of the normalization, joined by "+"; "none" if there are none."""

NONE = "none"
WHITESPACE = "whitespace"
"""SentencePiece's removal of extra whitespace."""

Step = Callable[[str], str]


def _form(name: str) -> Step:
    return lambda text: unicodedata.normalize(name, text)  # type: ignore[arg-type]


def _lower(text: str) -> str:
    """Lower case of each character by itself, as in the tokenizers library: no final sigma."""
    return "".join(map(str.lower, text))


UNICODE_STEPS: dict[str, Step] = {
    **{name: _form(name) for name in ("NFC", "NFD", "NFKC", "NFKD")},
    "Lowercase": _lower,
}
"""Steps by the names of the tokenizers library."""

SENTENCEPIECE_RULES = ("nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
"""Built-in rules of SentencePiece."""

_SENTENCEPIECE_STEPS = {*SENTENCEPIECE_RULES, WHITESPACE}


def normalizer_value(steps: Sequence[str]) -> str:
    """The value of `NORMALIZER_KEY` for these steps."""
    return "+".join(steps) or NONE


def normalizer_steps(header: GgufHeader) -> list[str]:
    """Names of the steps of a model's normalization.

    A file without the key has none, except one with the pre-tokenizer of Qwen2, whose models all use NFC.

    Raises:
        GgufError: an unknown step.
    """
    keys = header.metadata
    is_qwen2 = keys.get("tokenizer.ggml.model") == "gpt2" and keys.get("tokenizer.ggml.pre") == "qwen2"
    value = keys.get(NORMALIZER_KEY, "NFC" if is_qwen2 else NONE)
    names = [] if value == NONE else str(value).split("+")
    known = UNICODE_STEPS.keys() if names[:1] and names[0] in UNICODE_STEPS else _SENTENCEPIECE_STEPS
    if not known >= set(names) or len(set(names)) < len(names):
        raise GgufError(
            "unknown normalization", path=header.files[0], item=NORMALIZER_KEY, found=repr(value)[:80]
        )
    return names


def read_normalizer(header: GgufHeader) -> Step | None:
    """The normalization of a model's texts; None if there is none.

    Raises:
        GgufError: an unknown step.
    """
    names = normalizer_steps(header)
    if names and names[0] not in UNICODE_STEPS:
        rule = next((name for name in names if name != WHITESPACE), "identity")
        return _sentencepiece(rule, removes_whitespace=WHITESPACE in names)
    steps = [UNICODE_STEPS[name] for name in names]
    return (lambda text: _apply(steps, text)) if steps else None


def _apply(steps: Sequence[Step], text: str) -> str:
    for step in steps:
        text = step(text)
    return text


def _sentencepiece(rule: str, *, removes_whitespace: bool) -> Step:
    from sentencepiece import SentencePieceNormalizer

    normalizer = SentencePieceNormalizer(
        rule_name=rule,
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=removes_whitespace,
    )
    return lambda text: str(normalizer.Normalize(text))
