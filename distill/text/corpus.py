"""The text of a run: one file of tokens from all documents, and its manifest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb_edge.distill.text.decontamination import held_out_hashes, holds
from sb_edge.distill.text.sources import Document
from sb_edge.distill.text.tokenizer import TEXT_TYPE, Tokenizer
from sb_edge.util.errors import TrainingError
from sb_edge.util.files import atomic_directory
from sb_edge.util.hashes import sha256_of, sha256_of_bytes
from sb_edge.util.progress import progress_bar

TOKENS = "tokens.npy"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Entry:
    """A document in the manifest.

    Attributes:
        source, licence, kind: as `Document`.
        sha256: Hash of the text as UTF-8.
        tokens: that it became, the separator included.
    """

    source: str
    licence: str
    kind: str
    sha256: str
    tokens: int


@dataclass(frozen=True)
class Corpus:
    """Tokens to train on.

    Attributes:
        text: [n] of `TEXT_TYPE`, memory-mapped.
        sha256: of their file.
    """

    text: NDArray[np.void]
    sha256: str


def write_corpus(
    documents: Iterable[Document], tokenizer: Tokenizer, folder: Path, request: dict[str, Any]
) -> None:
    """Write tokens.npy and manifest.json; complete or not at all. A text that comes twice is taken once.

    Args:
        documents: they are read one after the other.
        tokenizer: the base's.
        folder: must not exist.
        request: Request that the text was made for; `open_corpus` compares it.

    Raises:
        TrainingError: no text, or one that models are measured on.
        OutputError: the folder cannot be written.
    """
    held_out = held_out_hashes()
    entries: dict[str, Entry] = {}
    pieces: list[NDArray[np.void]] = []
    with atomic_directory(folder) as partial, progress_bar("reading text, documents", None) as advance:
        for document in documents:
            digest = sha256_of_bytes(document.text.encode("utf-8", "surrogatepass"))
            if digest in entries:
                continue
            if holds(document.text, held_out):
                raise TrainingError(
                    "holds text that models are measured on", path=document.source, hint="leave it out"
                )
            tokens = tokenizer.document(document)
            entries[digest] = Entry(document.source, document.licence, document.kind, digest, len(tokens))
            pieces.append(tokens)
            advance(1)
        if not pieces:
            raise TrainingError("there is no text to train on", hint="give --text, --packages or --samples")
        np.save(partial / TOKENS, np.concatenate(pieces))
        _write_manifest(partial / MANIFEST, list(entries.values()), tokenizer, request)


def _write_manifest(path: Path, entries: list[Entry], tokenizer: Tokenizer, request: dict[str, Any]) -> None:
    licences, kinds = Counter[str](), Counter[str]()
    for entry in entries:
        licences[entry.licence] += entry.tokens
        kinds[entry.kind] += entry.tokens
    document = {
        "request": request,
        "tokens": sum(entry.tokens for entry in entries),
        "tokens_by_kind": dict(sorted(kinds.items())),
        "tokens_by_licence": dict(sorted(licences.items())),
        "tokenizer_sha256": tokenizer.sha256,
        "tokens_sha256": sha256_of(path.parent / TOKENS),
        "documents": [asdict(entry) for entry in entries],
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def open_corpus(folder: Path, vocab_size: int, request: dict[str, Any]) -> Corpus:
    """A folder that `write_corpus` made.

    Args:
        folder: Folder of the text.
        vocab_size: Vocabulary size of the base.
        request: Request of this run.

    Raises:
        TrainingError: damaged, changed since, another text than asked for, or another vocabulary.
    """
    path = folder / TOKENS
    try:
        text = np.load(path, mmap_mode="r", allow_pickle=False)
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected, made_for = manifest["tokens_sha256"], manifest["request"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainingError(
            "is not a distillation text", path=folder, found=str(error), hint="remove the folder"
        ) from None
    if made_for != request:
        raise TrainingError(
            "was made from other text than asked for now",
            path=folder,
            found=json.dumps(made_for),
            expected=json.dumps(request),
            hint="ask for the same, remove the folder, or choose another output",
        )
    found = sha256_of(path)
    if found != expected or text.dtype != TEXT_TYPE or text.ndim != 1:
        raise TrainingError(
            "is not what its manifest says",
            path=path,
            found=found,
            expected=expected,
            hint="remove the folder",
        )
    if len(text) and int(text["token"].max()) >= vocab_size:
        raise TrainingError(
            "holds a token outside the base's vocabulary",
            path=path,
            found=int(text["token"].max()),
            expected=f"less than {vocab_size}",
            hint="remove the folder, so that the text is read again",
        )
    return Corpus(text, found)
