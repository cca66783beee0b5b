"""Text that the base writes itself."""

from __future__ import annotations

from collections.abc import Iterator

from sb_edge.distill.base import Base
from sb_edge.distill.sources import Document
from sb_edge.distill.tokenizer import Tokenizer


def sampled_documents(base: Base, tokenizer: Tokenizer, tokens: int, seed: int) -> Iterator[Document]:
    """Documents."""
    yield from ()
