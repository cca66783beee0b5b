"""Getting the pinned source distribution, and nothing else."""

from __future__ import annotations

import importlib.resources
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sb_edge.util.errors import EngineError
from sb_edge.util.packages import Pinned, fetch_file
from sb_edge.util.validation import first_problem

if sys.version_info >= (3, 11, 4):
    import tarfile
else:  # the standard library's has no filters yet
    from backports import tarfile  # type: ignore[no-redef]


class Upstream(BaseModel):
    """What `patches/UPSTREAM` pins."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    package: str
    version: str
    filename: str = Field(pattern=r"^[A-Za-z0-9._-]+\.tar\.gz$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tree: str
    """The llama.cpp tree, relative to the distribution's top folder."""
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    ggml_version: str
    licence: str

    @property
    def folder(self) -> str:
        """The one folder at the top of the distribution."""
        return self.filename.removesuffix(".tar.gz")


def patches_folder() -> Path:
    """The installed `patches/`: UPSTREAM, series, the patches and the overlay."""
    return Path(str(importlib.resources.files("sb_edge.patches")))


def read_upstream(path: Path) -> Upstream:
    """Read `UPSTREAM` (TOML).

    Raises:
        EngineError: not there, not TOML, or a key that is missing, unknown or of the wrong form.
    """
    try:
        return Upstream.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise EngineError("not found", path=path, hint="reinstall sb-edge") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EngineError("is not valid TOML", path=path, found=str(error)) from None
    except ValidationError as error:
        key, message, found, _ = first_problem(error)
        raise EngineError(message, path=path, item=key, found=found) from None


def fetch_sdist(upstream: Upstream, folder: Path) -> Path:
    """The verified source distribution in `folder`, downloaded by pip unless it is there already.

    Raises:
        EngineError: no pip, no network, or content other than the pinned one.
    """
    return fetch_file(Pinned(upstream.package, upstream.version, upstream.filename, upstream.sha256), folder)


def _wanted(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All members but the `.git` that this distribution carries: its settings and hooks are not ours."""
    for member in archive:
        if ".git" not in PurePosixPath(member.name).parts:
            yield member


def unpack(sdist: Path, upstream: Upstream, folder: Path) -> Path:
    """Unpack a verified source distribution into `folder`; return its top folder.

    Raises:
        EngineError: damaged, or a member that would land outside `folder`.
    """
    try:
        with tarfile.open(sdist, "r:gz") as archive:
            archive.extractall(folder, members=_wanted(archive), filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise EngineError(
            "cannot be unpacked", path=sdist, found=str(error), hint="delete it and build again"
        ) from None
    top = folder / upstream.folder
    if not (top / upstream.tree / "CMakeLists.txt").is_file():
        raise EngineError(
            "holds no llama.cpp", path=sdist, expected=f"{upstream.folder}/{upstream.tree}/CMakeLists.txt"
        )
    return top
