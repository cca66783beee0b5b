"""Free text on this machine: documentation of installed packages, with its licence."""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from sb_edge.distill.text.decontamination import held_out_hashes, holds
from sb_edge.distill.text.sources import Document

FREE = {
    "mit": "MIT",
    "mit license": "MIT",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "new bsd license": "BSD-3-Clause",
    "apache-2.0": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "isc": "ISC",
    "isc license (iscl)": "ISC",
    "psf-2.0": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "mpl-2.0": "MPL-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "unlicense": "Unlicense",
    "cc0-1.0": "CC0-1.0",
    "expat": "MIT",
    "0bsd": "0BSD",
    "zlib": "Zlib",
    "bsl-1.0": "BSL-1.0",
    "apache-2.0 with llvm-exception": "Apache-2.0 WITH LLVM-exception",
}
"""What packages say, in lower case: SPDX identifiers. Of several licences, all must be here."""

LEAST_CHARACTERS = 200
"""Of a docstring or a file: shorter ones hold little but names."""

DEBIAN_DOCS = Path("/usr/share/doc")
COMMON_LICENCES = Path("/usr/share/common-licenses")

OWN_PACKAGE = "sb-edge"


def found_documents() -> Iterator[Document]:
    """Docstrings of Python and of installed packages, their documents, and Debian's, as licences allow.

    Texts that models are measured on are left out.
    """
    held_out = held_out_hashes()
    for document in _all_documents():
        if len(document.text) >= LEAST_CHARACTERS and not holds(document.text, held_out):
            yield document


def _all_documents() -> Iterator[Document]:
    yield from _standard_library()
    for package in sorted(distributions(), key=lambda package: package.name.lower()):
        licence = licence_of(package)
        if licence and package.name != OWN_PACKAGE:
            yield from _package(package, licence)
    yield from _debian(DEBIAN_DOCS)
    for file in sorted(COMMON_LICENCES.glob("*")):
        if file.is_file() and not file.is_symlink():
            yield from _plain(file, f"common-licenses/{file.name}", "verbatim copies permitted")


def licence_of(package: Distribution) -> str | None:
    """The free licence that a package's metadata names; None if it is another, or not clear."""
    metadata = package.metadata
    found = next(iter(metadata.get_all("License-Expression") or ()), "")
    if not found:
        classifiers = [
            line.rpartition("::")[2].strip()
            for line in metadata.get_all("Classifier") or ()
            if line.startswith("License ::") and not line.endswith("OSI Approved")
        ]
        found = " AND ".join(classifiers) or next(iter(metadata.get_all("License") or ()), "")
    return free_licence(found)


def free_licence(text: str) -> str | None:
    """An SPDX expression for one or several licences that are all in `FREE`, or None."""
    names = [name.strip(" ()") for name in re.split(r"\s+(?:and|or)\s+", text.strip(), flags=re.IGNORECASE)]
    known = [FREE.get(name.lower()) or FREE.get(f"{name.lower()})") for name in names]
    free = [name for name in known if name is not None]
    return " AND ".join(dict.fromkeys(free)) if free and len(free) == len(known) else None


def _standard_library() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if not {"site-packages", "test", "tests", "idle_test"} & set(parts):
            yield from _docstrings(file, f"python/{'/'.join(parts)}", "PSF-2.0")
    topics = root / "pydoc_data" / "topics.py"
    if topics.is_file():
        yield from _strings(topics, "python/pydoc_data/topics.py", "PSF-2.0")


def _package(package: Distribution, licence: str) -> Iterator[Document]:
    description = package.metadata.get_payload()  # type: ignore[attr-defined]
    if isinstance(description, str):
        yield Document(description, f"{package.name}/METADATA", licence)
    for entry in sorted(package.files or (), key=str):
        source = f"{package.name}/{entry}"
        if ".." in entry.parts or {"tests", "test", "licenses"} & set(entry.parts):
            continue
        file = Path(str(entry.locate()))
        if entry.suffix == ".py":
            yield from _docstrings(file, source, licence)
        elif entry.suffix in (".md", ".rst"):
            yield from _plain(file, source, licence)


def _debian(root: Path) -> Iterator[Document]:
    for copyright_file in sorted(root.glob("*/copyright")):
        licence = _debian_licence(copyright_file)
        if licence:
            for file in sorted(copyright_file.parent.glob("*")):
                if file.suffix in (".md", ".rst", ".txt") or file.name.startswith("README"):
                    yield from _plain(file, f"debian/{file.relative_to(root)}", licence)


def _debian_licence(file: Path) -> str | None:
    """Of all of a package's files, from a copyright file in Debian's machine-readable format 1.0."""
    text = _read(file)
    if text is None or "copyright-format/1.0" not in text:
        return None
    names = set(re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE))
    licences = {free_licence(name) for name in names}
    return (
        " AND ".join(sorted(name for name in licences if name)) if licences and None not in licences else None
    )


def _docstrings(file: Path, source: str, licence: str) -> Iterator[Document]:
    """A module's longer docstrings, in the order of the file, as one document."""
    tree = _parse(file)
    if tree is None:
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    texts = [ast.get_docstring(node) for node in nodes]
    yield _joined((text for text in texts if text), source, licence)


def _strings(file: Path, source: str, licence: str) -> Iterator[Document]:
    """A module's long string literals: documents, in the case of pydoc's topics."""
    tree = _parse(file)
    if tree is not None:
        literals = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        texts = (inspect.cleandoc(value) for value in literals if isinstance(value, str))
        yield _joined(texts, source, licence)


def _joined(texts: Iterable[str], source: str, licence: str) -> Document:
    return Document("\n\n".join(text for text in texts if len(text) >= LEAST_CHARACTERS), source, licence)


def _plain(file: Path, source: str, licence: str) -> Iterator[Document]:
    text = _read(file)
    if text is not None:
        yield Document(text, source, licence)


def _parse(file: Path) -> ast.Module | None:
    """None for a file that this Python version cannot parse."""
    text = _read(file)
    try:
        return None if text is None else ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _read(file: Path) -> str | None:
    """None where there is no such file, or it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
