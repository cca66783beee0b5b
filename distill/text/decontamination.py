"""Decontamination: reject training text that contains evaluation paragraphs."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator

from sb_edge.evaluate.questions import read_questions
from sb_edge.util.hashes import sha256_of_bytes

LEAST_CHARACTERS = 40
"""Of a paragraph that counts: a short one may stand anywhere."""


def paragraph_hashes(text: str) -> Iterator[str]:
    """SHA-256 of every paragraph of some length; case, punctuation and wrapping make no difference."""
    for paragraph in re.split(r"\n\s*\n", text):
        plain = " ".join(re.findall(r"\w+", paragraph.casefold()))
        if len(plain) >= LEAST_CHARACTERS:
            yield sha256_of_bytes(plain.encode())


def held_out_hashes() -> frozenset[str]:
    """Those of every text in `sb_edge/evaluate/data`, and of the questions there."""
    folder = importlib.resources.files("sb_edge.evaluate") / "data"
    texts = [file.read_text(encoding="utf-8") for file in folder.iterdir() if file.name.endswith(".txt")]
    texts += [question.question for question in read_questions(None)]
    return frozenset(digest for text in texts for digest in paragraph_hashes(text))


def holds(text: str, hashes: frozenset[str]) -> bool:
    """Whether a text has a paragraph of these."""
    return not hashes.isdisjoint(paragraph_hashes(text))
