"""Working on the engine: a git tree of the patched source, and the patches made anew from it."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from pathlib import Path

from sb_edge.engine.patching import PatchSet, apply_patches, load_patches, run_git
from sb_edge.engine.source import fetch_sdist, patches_folder, read_upstream, unpack
from sb_edge.util.errors import EngineError
from sb_edge.util.files import atomic_output
from sb_edge.util.user_cache import cache_root

UPSTREAM_TAG = "upstream"
"""Tag of the commit that holds the pinned source as it is."""

_DIFF = re.compile(r"^diff --git ", re.MULTILINE)
_NAME = re.compile(r"^\+\+\+ b/(.+)$", re.MULTILINE)
_IDENTITY = ("-c", "user.name=sb-edge", "-c", "user.email=sb-edge@localhost", "-c", "commit.gpgsign=false")


def checkout(folder: Path) -> Path:
    """Write a git working tree of llama.cpp with all patches and the overlay applied.

    Its first commit, tagged `upstream`, is the pinned source; the second one adds patches and overlay. Edit,
    build with cmake, then `refresh_patches`.

    Args:
        folder: Folder to make; it may exist if it is empty.

    Returns:
        `folder`.

    Raises:
        EngineError: not empty, no git, or the source cannot be fetched or patched.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EngineError("exists and is not empty", path=folder, hint="choose another folder")
    patches = patches_folder()
    upstream = read_upstream(patches / "UPSTREAM")
    sdist = fetch_sdist(upstream, cache_root() / "source")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
        tree = unpack(sdist, upstream, Path(work)) / upstream.tree
        _git(tree, "init", "--quiet")
        _commit_all(tree, f"llama.cpp {upstream.commit}")
        _git(tree, "tag", UPSTREAM_TAG)
        apply_patches(load_patches(patches), tree)
        _commit_all(tree, "sb-edge: patches and overlay")
        tree.replace(folder)
    return folder


def refresh_patches(tree: Path, patches: Path | None = None, *, new: str | None = None) -> list[Path]:
    """Write patches and overlay anew from a working tree that `checkout` made.

    A changed file of upstream goes to the patch that changes it already, which keeps its opening text. Files
    that upstream does not have become the overlay, except those that git ignores, such as build folders.

    Args:
        tree: Working tree; uncommitted changes count.
        patches: Folder to write to; None: this installation's.
        new: Name of the patch that gets upstream files that no patch changes yet.

    Returns:
        Files written or removed.

    Raises:
        EngineError: not such a tree, or a changed file that belongs to no patch.
        OutputError: a file cannot be written.
    """
    patches = patches or patches_folder()
    if run_git(tree, "rev-parse", "--verify", "--quiet", f"{UPSTREAM_TAG}^{{commit}}").returncode != 0:
        raise EngineError(
            "is not a tree of `sb-edge engine checkout`", path=tree, found=f"no tag {UPSTREAM_TAG!r}"
        )
    _git(tree, "add", "--all")
    patch_set = load_patches(patches)
    contents = _patches_of(tree, patch_set, new)
    changed = [patches / name for name, text in contents.items() if _write(patches / name, text.encode())]
    return changed + _refresh_overlay(tree, patch_set.overlay)


def _patches_of(tree: Path, patch_set: PatchSet, new: str | None) -> dict[str, str]:
    """Name and text of every patch, from the difference between tree and upstream."""
    openings = {}
    owner = {}
    for patch in patch_set.patches:
        text = patch.read_text(encoding="utf-8")
        openings[patch.name] = _DIFF.split(text, maxsplit=1)[0]
        owner.update(dict.fromkeys(_NAME.findall(text), patch.name))
    files = defaultdict(list)
    for name in _changed(tree, "MD"):
        patch_name = owner.get(name, new)
        if patch_name is None:
            raise EngineError(
                "no patch changes this file yet",
                path=tree / name,
                hint="name the patch that gets it: --new NAME.patch",
            )
        files[patch_name].append(name)
    return {
        name: openings.get(name, "Subject.\n\nReason:\nDroppable when:\n\n") + _diff(tree, files[name])
        for name in [*openings, *(name for name in files if name not in openings)]
    }


def _changed(tree: Path, kinds: str) -> list[str]:
    """Files that differ from upstream; kinds as for git's --diff-filter."""
    options = ("--cached", "--no-renames", "--name-only", f"--diff-filter={kinds}")
    return _git(tree, "diff", *options, UPSTREAM_TAG).splitlines()


def _diff(tree: Path, files: list[str]) -> str:
    options = ("--cached", "--no-renames", "--no-color", "--no-ext-diff", "--full-index", "--unified=3")
    prefixes = ("--src-prefix=a/", "--dst-prefix=b/")
    return _git(tree, "diff", *options, *prefixes, UPSTREAM_TAG, "--", *files) if files else ""


def _refresh_overlay(tree: Path, overlay: Path) -> list[Path]:
    added = _changed(tree, "A")
    changed = [overlay / name for name in added if _write(overlay / name, (tree / name).read_bytes())]
    for file in sorted(path for path in overlay.rglob("*") if path.is_file()):
        if str(file.relative_to(overlay)) not in added:
            file.unlink()
            changed.append(file)
    return changed


def _write(path: Path, content: bytes) -> bool:
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(path) as partial:
        partial.write_bytes(content)
    return True


def _commit_all(tree: Path, message: str) -> None:
    _git(tree, "add", "--all", "--force")
    _git(tree, *_IDENTITY, "commit", "--quiet", "--no-verify", "--message", message)


def _git(tree: Path, *arguments: str) -> str:
    done = run_git(tree, *arguments)
    if done.returncode != 0:
        found = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EngineError(f"git {arguments[0]} failed", path=tree, found=found)
    return done.stdout
