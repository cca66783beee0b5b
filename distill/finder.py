"""Free text that lies on the machine anyway: documentation of what is installed, with its licence."""

from __future__ import annotations

from collections.abc import Iterator

from sb_edge.distill.sources import Document


def found_documents() -> Iterator[Document]:
    """Documents."""
    yield from ()
