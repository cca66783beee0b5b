"""A tree to work on the engine, and the patches made anew from it."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from sb_edge.engine.checkout import checkout, refresh_patches
from sb_edge.engine.patching import load_patches
from sb_edge.engine.source import patches_folder
from sb_edge.util.errors import EngineError

MAX_HUNKS = {"00": 27, "01": 8, "02": 19}
"""By the first digits of a patch: operators and architecture, speed and memory, robustness."""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("engine") / "tree")


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    return Path(shutil.copytree(patches_folder(), tmp_path / "patches", ignore=shutil.ignore_patterns("__*")))


@pytest.fixture
def tree(pristine: Path, tmp_path: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", pristine, tmp_path / "tree"], check=True)
    return tmp_path / "tree"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_unchanged_tree_gives_the_same_bytes(pristine: Path, patches: Path) -> None:
    before = contents(patches)
    assert refresh_patches(pristine, patches) == []
    assert contents(patches) == before


def test_an_edit_goes_to_the_patch_of_its_file(tree: Path, patches: Path) -> None:
    file = tree / "src" / "llama-quant.cpp"
    file.write_text(file.read_text().replace("it is tiny; a merged one is wide", "it is tiny"))
    (tree / "src" / "sb-new.cpp").write_text("int sb_new;\n")
    (tree / "ggml" / "src" / "sb-huge-pages.h").unlink()
    name = "0002-llama-architecture-spikingbrain.patch"
    opening = (patches / name).read_text().partition("diff --git")[0]
    changed = {str(path.relative_to(patches)) for path in refresh_patches(tree, patches)}
    assert changed == {name, "overlay/src/sb-new.cpp", "overlay/ggml/src/sb-huge-pages.h"}
    text = (patches / name).read_text()
    assert text.startswith(opening)
    assert "it is tiny\n" in text
    assert not (patches / "overlay" / "ggml" / "src" / "sb-huge-pages.h").exists()


def test_a_file_of_no_patch_needs_a_name(tree: Path, patches: Path) -> None:
    file = tree / "src" / "llama-batch.cpp"
    file.write_text("// changed\n" + file.read_text())
    before = contents(patches)
    with pytest.raises(EngineError, match=r"llama-batch\.cpp: no patch changes this file yet"):
        refresh_patches(tree, patches)
    assert contents(patches) == before
    assert refresh_patches(tree, patches, new="0004-batch.patch") == [patches / "0004-batch.patch"]
    assert "+// changed" in (patches / "0004-batch.patch").read_text()


def test_a_folder_with_files_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(EngineError, match="exists and is not empty"):
        checkout(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_another_tree_is_refused(tmp_path: Path, patches: Path) -> None:
    with pytest.raises(EngineError, match="not a tree of `sb-edge engine checkout`"):
        refresh_patches(tmp_path, patches)


def test_hooks_are_few_and_each_upstream_file_has_one_patch() -> None:
    patches = load_patches(patches_folder()).patches
    texts = [patch.read_text() for patch in patches]
    hunks: Counter[str] = Counter()
    for patch, text in zip(patches, texts, strict=True):
        hunks[patch.name[:2]] += len(re.findall(r"^@@ ", text, re.MULTILINE))
    assert all(count <= MAX_HUNKS[kind] for kind, count in hunks.items())
    files = Counter(name for text in texts for name in re.findall(r"^\+\+\+ b/(.+)$", text, re.MULTILINE))
    assert [name for name, count in files.items() if count > 1] == []


def test_generic_patches_can_be_left_out() -> None:
    folder = patches_folder()
    names = [patch.name for patch in load_patches(folder, "operators").patches]
    assert names
    assert all(name.startswith("00") for name in names)
    assert set(names) < {patch.name for patch in load_patches(folder).patches}
    stock = load_patches(folder, "none")
    assert (stock.patches, stock.overlay_files) == ((), ())
