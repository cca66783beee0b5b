"""All the text that was asked for: given, of packages, sampled from the base, made for recall."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb_edge.distill.base import Base
from sb_edge.distill.text.package_text import listed_packages, package_documents
from sb_edge.distill.text.recall import recall_documents
from sb_edge.distill.text.samples import sampled_documents
from sb_edge.distill.text.sources import Document, given_documents
from sb_edge.distill.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextRequest:
    """What to train on.

    Attributes:
        text: files and folders.
        packages: tokens of the listed packages.
        samples: tokens that the base is to write itself.
        recall: tokens of documents that ask for what they told.
        seed: Random seed for drawing, sampling and recall data.
        bf16: the samples come from the base in bfloat16.
    """

    text: tuple[Path, ...] = ()
    packages: int = 0
    samples: int = 0
    recall: int = 0
    seed: int = 0
    bf16: bool = False

    def to_json(self) -> dict[str, Any]:
        """For the manifest: names without folders."""
        return {
            "text": [path.name for path in self.text],
            "packages": self.packages,
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
    passages = []
    if request.packages:
        for document in package_documents(listed_packages(), tokenizer, request.packages, request.seed):
            passages.append(document.text)
            yield document
    if request.samples:
        yield from sampled_documents(base, tokenizer, request.samples, request.seed, bf16=request.bf16)
    if request.recall:
        yield from recall_documents(tokenizer, request.recall, request.seed, passages)
