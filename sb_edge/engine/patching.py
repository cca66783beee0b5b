"""The patch series and the overlay: checked, applied with zero fuzz, or refused by name."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sb_edge.util.errors import EngineError
from sb_edge.util.hashes import sha256_of, sha256_of_bytes

PatchChoice = Literal["all", "operators", "none"]

SERIES: dict[PatchChoice, tuple[str, ...]] = {
    "all": ("series", "series-generic"),
    "operators": ("series",),
    "none": (),
}
"""Patch selection: the files that list its patches, in order. "none" is the pinned source as it is."""

_GENERIC = "series-generic"  # optional: improvements that do not concern SpikingBrain


@dataclass(frozen=True)
class PatchSet:
    """Patches and files applied to the upstream tree.

    Attributes:
        patches: Patch files, in the order in which they apply.
        overlay: Folder whose files are added to the tree.
        overlay_files: Overlay files relative to `overlay`, sorted; empty for the pinned source as it is.
    """

    patches: tuple[Path, ...]
    overlay: Path
    overlay_files: tuple[Path, ...]

    def contents(self) -> dict[str, dict[str, str]]:
        """Names and SHA-256 of all patches and overlay files."""
        return {
            "patches": {patch.name: sha256_of(patch) for patch in self.patches},
            "overlay": {str(file): sha256_of(self.overlay / file) for file in self.overlay_files},
        }

    def digest(self) -> str:
        """One SHA-256 over names, order and contents."""
        return sha256_of_bytes(repr(self.contents()).encode())


def read_series(path: Path) -> list[str]:
    """The patch names in `series`, in order; `#` starts a comment.

    Raises:
        EngineError: not there, or a name listed twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise EngineError("not found", path=path, hint="reinstall sb-edge") from None
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise EngineError("a patch is listed twice", path=path, item=min(twice))
    return names


def load_patches(folder: Path, choice: PatchChoice = "all") -> PatchSet:
    """Read the series and the overlay in `folder`.

    Args:
        folder: Folder with `series`, `series-generic` (optional), `*.patch` and `overlay/`.
        choice: Patches to apply; all of them are checked.

    Raises:
        EngineError: the two series and the `*.patch` files present are not the same set, or the overlay holds
            something that is not a plain file.
    """
    by_file = {"series": read_series(folder / "series")}
    if (folder / _GENERIC).exists():
        by_file[_GENERIC] = read_series(folder / _GENERIC)
    listed = [name for names in by_file.values() for name in names]
    present = {file.name for file in folder.glob("*.patch")}
    for name in listed:
        if name not in present:
            raise EngineError(
                "the patch is not there", path=folder / "series", item=name, hint="add the file"
            )
    for name in sorted(present - set(listed)):
        raise EngineError("is not listed in series", path=folder / name, hint="list it, or remove the file")
    overlay = folder / "overlay"
    entries = sorted(overlay.rglob("*"))
    for entry in entries:
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise EngineError("is not a plain file", path=entry, hint="the overlay holds whole files only")
    files = tuple(entry.relative_to(overlay) for entry in entries if entry.is_file())
    chosen = tuple(folder / name for file in SERIES[choice] for name in by_file.get(file, ()))
    return PatchSet(chosen, overlay, files if choice != "none" else ())


def apply_patches(patch_set: PatchSet, tree: Path) -> None:
    """Apply the series, then add the overlay. On an error `tree` is left half patched: throw it away.

    Raises:
        EngineError: no git, a patch that does not apply exactly, or an overlay file that upstream has too.
    """
    for patch in patch_set.patches:
        _git_apply(patch, tree)
    for file in patch_set.overlay_files:
        target = tree / file
        if target.exists():
            raise EngineError(
                "would overwrite a file of upstream",
                path=patch_set.overlay / file,
                hint="change upstream's file by a patch, or give the new one another name",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(patch_set.overlay / file, target)


def git_free_environment(tree: Path) -> dict[str, str]:
    """The environment in which git sees neither a repository around `tree` nor anybody's settings.

    Inside a repository `git apply` silently skips files, and a user's `apply.whitespace` or
    `apply.ignoreWhitespace` would loosen the match.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_CEILING_DIRECTORIES"] = str(tree.resolve().parent)
    environment["GIT_CONFIG_GLOBAL"] = os.devnull
    environment["GIT_CONFIG_NOSYSTEM"] = "1"
    environment["LC_ALL"] = "C"
    return environment


def run_git(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in `tree`, see `git_free_environment`.

    Raises:
        EngineError: git is not installed.
    """
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=tree,
            env=git_free_environment(tree),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise EngineError(
            "git is not installed", hint="install it (Debian, Ubuntu: `apt install git`)"
        ) from None


def _git_apply(patch: Path, tree: Path) -> None:
    for mode in (["--check"], []):
        done = run_git(tree, "apply", *mode, str(patch.resolve()))
        if done.returncode != 0:
            lines = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.strip()]
            raise EngineError(
                "the patch does not apply",
                path=patch,
                found=lines[0] if lines else f"exit code {done.returncode} from git apply",
                hint="refresh it: `sb-edge engine checkout`, then `sb-edge engine refresh-patches`",
            )
