"""Where built engines live, and how one build at a time puts a complete one there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from sb_edge.util.errors import EngineError
from sb_edge.util.files import sync_tree
from sb_edge.util.hashes import sha256_of_bytes
from sb_edge.util.progress import note

MANIFEST = "engine.json"
"""Written last into a prefix, which is then renamed into place: a prefix with it is complete."""


def content_key(content: dict[str, Any]) -> str:
    """A name for everything that decides what a build yields: 16 hexadecimal digits of its SHA-256."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return sha256_of_bytes(canonical.encode())[:16]


class BuildCache:
    """Finished prefixes under `root/engines`, one work folder for each build in progress under `root/work`.

    A prefix appears by one rename, as the last step. Whatever stops a build, at worst its work folder stays
    behind, and the next build removes it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def prefix(self, name: str) -> Path:
        """Where the engine called `name` is, or would be."""
        return self.root / "engines" / name

    def log(self, name: str) -> Path:
        """The full log of the last build of `name`."""
        return self.root / "logs" / f"{name}.log"

    def is_complete(self, name: str) -> bool:
        """Whether `name` has been built."""
        return (self.prefix(name) / MANIFEST).is_file()

    def build_once(self, name: str, build: Callable[[Path, Path], None], *, force: bool = False) -> Path:
        """The prefix `name`; `build(work, stage)` fills the folder `stage` if it is not there yet.

        Of several processes one builds, the others wait and find its result.

        Args:
            name: the key of the build.
            build: makes the prefix in `stage`, with `work` (on the same device) for its temporary files.
            force: Build again, and replace the present build on success.

        Raises:
            EngineError: `build` did; or it left no manifest.
        """
        if self.is_complete(name) and not force:
            return self.prefix(name)
        for folder in ("engines", "work", "locks", "logs"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        with self._lock(name):
            if force or not self.is_complete(name):
                self._remove_abandoned_work(name)
                self._build(name, build)
        return self.prefix(name)

    def _lock(self, name: str) -> AcquireReturnProxy:
        lock = FileLock(self.root / "locks" / f"{name}.lock")
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            note(f"another process is building {name}: waiting for it")
            return lock.acquire()

    def _build(self, name: str, build: Callable[[Path, Path], None]) -> None:
        work = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=self.root / "work"))
        try:
            stage = work / "stage"
            stage.mkdir()
            build(work, stage)
            if not (stage / MANIFEST).is_file():
                raise EngineError("the build left no manifest", path=stage / MANIFEST)
            self._publish(stage, self.prefix(name), work)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _publish(self, stage: Path, prefix: Path, work: Path) -> None:
        sync_tree(stage)
        if prefix.exists():
            prefix.replace(work / "replaced")
        stage.replace(prefix)

    def _remove_abandoned_work(self, own: str) -> None:
        """Remove what killed builds left: all work folders whose lock nobody holds."""
        for work in (self.root / "work").iterdir():
            name = work.name.rpartition(".")[0]
            if name == own:
                shutil.rmtree(work, ignore_errors=True)
                continue
            lock = FileLock(self.root / "locks" / f"{name}.lock")
            try:
                with lock.acquire(timeout=0):
                    shutil.rmtree(work, ignore_errors=True)
            except Timeout:
                continue
