"""Getting the pinned source distribution, and nothing else."""

from __future__ import annotations

import hashlib
import importlib.resources
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sb_edge.errors import EngineError
from sb_edge.files import atomic_output
from sb_edge.progress import progress_bar


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
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise EngineError(first["msg"], path=path, item=key, found=repr(first["input"])) from None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_sdist(path: Path, upstream: Upstream) -> None:
    """Refuse a source distribution whose content is not the pinned one.

    Raises:
        EngineError: another SHA-256.
    """
    found = sha256_of(path)
    if found != upstream.sha256:
        raise EngineError(
            "is not the pinned source distribution",
            path=path,
            item="sha256",
            found=found,
            expected=upstream.sha256,
            hint="delete this file and build again to download it afresh",
        )


def fetch_sdist(upstream: Upstream, folder: Path) -> Path:
    """The verified source distribution in `folder`, downloaded by pip unless it is there already.

    pip gets the hash too (`--require-hashes`), so that other content is refused before pip runs any of the
    code in it; pip takes index, mirror and proxy settings from the user's configuration.

    Raises:
        EngineError: no pip, no network, or content other than the pinned one.
    """
    path = folder / upstream.filename
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            downloaded = _pip_download(upstream, Path(scratch), path)
            verify_sdist(downloaded, upstream)
            with atomic_output(path) as partial:
                downloaded.replace(partial)
    verify_sdist(path, upstream)
    return path


def _pip_download(upstream: Upstream, scratch: Path, wanted: Path) -> Path:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{upstream.package}=={upstream.version} --hash=sha256:{upstream.sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
    ]
    command += ["--require-hashes", "--no-deps", "--no-binary", upstream.package]
    command += ["--dest", str(scratch), "--requirement", str(requirements)]
    with progress_bar(f"downloading {upstream.filename}", None):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    downloaded = scratch / upstream.filename
    if done.returncode == 0 and downloaded.is_file():
        return downloaded
    raise _download_error(upstream, done.stdout + done.stderr, wanted)


def _download_error(upstream: Upstream, log: str, wanted: Path) -> EngineError:
    if "DO NOT MATCH THE HASHES" in log:
        got = [line.split()[-1] for line in log.splitlines() if line.strip().startswith("Got ")]
        return EngineError(
            "the package index serves something else under this name",
            path=upstream.filename,
            item="sha256",
            found=got[-1] if got else "another hash",
            expected=upstream.sha256,
            hint="refused; check pip's index settings (`pip config list`)",
        )
    if "No module named pip" in log:
        return EngineError(f"{sys.executable} has no pip", hint="run `python -m ensurepip`")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return EngineError(
        "could not be downloaded",
        path=upstream.filename,
        found=(errors or lines or ["no message from pip"])[-1],
        hint=f"check the network, or put the file at {wanted} yourself",
    )


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
