"""All the text that was asked for: given, found on the machine, sampled from the base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb_edge.distill.base import Base
from sb_edge.distill.finder import found_documents
from sb_edge.distill.samples import sampled_documents
from sb_edge.distill.sources import Document, given_documents
from sb_edge.distill.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextRequest:
    """What to train on.

    Attributes:
        text: files and folders.
        find: take free text that lies on this machine, too.
        samples: tokens that the base is to write itself.
        seed: of the samples.
    """

    text: tuple[Path, ...] = ()
    find: bool = False
    samples: int = 0
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the manifest: names without folders."""
        return {
            "text": [path.name for path in self.text],
            "find_text": self.find,
            "samples": self.samples,
            "seed": self.seed,
        }


def documents(request: TextRequest, base: Base, tokenizer: Tokenizer) -> Iterator[Document]:
    """The documents, in an order that depends on nothing but what they are.

    Raises:
        TrainingError: as `given_documents`.
    """
    yield from given_documents(request.text)
    if request.find:
        yield from found_documents()
    if request.samples:
        yield from sampled_documents(base, tokenizer, request.samples, request.seed)
