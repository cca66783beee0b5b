"""Documents to train on: free text from files and folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sb_edge.util.errors import TrainingError
from sb_edge.util.input_files import read_text_input

SUFFIXES = (".txt", ".md", ".rst")
"""Suffixes of files taken from a folder; a file given by name may have any."""

UNKNOWN_LICENCE = "as given by the user"


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        text: The text.
        source: where it is from: a file's name, without the folders above those that were given.
        licence: SPDX identifier where known.
        kind: kind of text: "prose", "code", ...
        answers: places [start, end) of characters that can be known from the text before them; where there
            are some, the student learns to predict these alone.
    """

    text: str
    source: str
    licence: str
    kind: str = "given"
    answers: tuple[tuple[int, int], ...] = ()


def given_documents(paths: Sequence[Path]) -> Iterator[Document]:
    """The texts of `--text`: files, and all `SUFFIXES` files under folders, sorted by name.

    Raises:
        TrainingError: not there, not UTF-8, a folder without such files, or a file without text.
    """
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
            if not files:
                raise TrainingError("holds no text", path=path, expected=f"files named {', '.join(SUFFIXES)}")
            for file in files:
                yield Document(_read(file), f"{path.name}/{file.relative_to(path)}", UNKNOWN_LICENCE)
        elif path.is_file():
            yield Document(_read(path), path.name, UNKNOWN_LICENCE)
        else:
            raise TrainingError("not found", path=path, hint="give --text a file or a folder")


def _read(file: Path) -> str:
    text = read_text_input(file, TrainingError)
    if not text.strip():
        raise TrainingError("is empty", path=file, hint="give --text files that hold text")
    return text
