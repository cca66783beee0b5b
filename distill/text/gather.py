"""All the text that was asked for: given, found on the machine, sampled from the base, made for recall."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb_edge.distill.base import Base
from sb_edge.distill.text.finder import found_documents
from sb_edge.distill.text.recall import recall_documents
from sb_edge.distill.text.samples import sampled_documents
from sb_edge.distill.text.sources import Document, given_documents
from sb_edge.distill.text.tokenizer import Tokenizer
from sb_edge.util.progress import progress_bar


@dataclass(frozen=True)
class TextRequest:
    """What to train on.

    Attributes:
        text: files and folders.
        find: take free text that lies on this machine, too.
        find_tokens: Maximum number of tokens of that text, in random documents; None: all.
        samples: tokens that the base is to write itself.
        recall: tokens of documents that ask for what they told.
        seed: Random seed for drawing, sampling and recall data.
        bf16: the samples come from the base in bfloat16.
    """

    text: tuple[Path, ...] = ()
    find: bool = False
    find_tokens: int | None = None
    samples: int = 0
    recall: int = 0
    seed: int = 0
    bf16: bool = False

    def to_json(self) -> dict[str, Any]:
        """For the manifest: names without folders."""
        return {
            "text": [path.name for path in self.text],
            "find_text": self.find,
            "find_tokens": self.find_tokens,
            "samples": self.samples,
            "recall": self.recall,
            "seed": self.seed,
            "bf16": self.bf16,
        }


def documents(request: TextRequest, base: Base, tokenizer: Tokenizer) -> Iterator[Document]:
    """The documents, in an order that depends on nothing but what they are.

    Raises:
        TrainingError: as `given_documents`.
    """
    yield from given_documents(request.text)
    if request.find:
        found = found_documents()
        limit = request.find_tokens
        yield from found if limit is None else _drawn(found, tokenizer, limit, request.seed)
    if request.samples:
        yield from sampled_documents(base, tokenizer, request.samples, request.seed, bf16=request.bf16)
    if request.recall:
        yield from recall_documents(tokenizer, request.recall, request.seed)


def _drawn(documents: Iterable[Document], tokenizer: Tokenizer, tokens: int, seed: int) -> Iterator[Document]:
    """Documents in random order, until the next one would be too much."""
    listed = []
    with progress_bar("looking for text, documents", None) as advance:
        for document in documents:
            listed.append(document)
            advance(1)
    random.Random(seed).shuffle(listed)
    for document in listed:
        tokens -= len(tokenizer.document(document.text))
        if tokens < 0:
            return
        yield document
