"""The series and the overlay: zero fuzz, and every refusal names its file."""

import subprocess
from pathlib import Path

import pytest

from sb_edge.engine.patching import apply_patches, load_patches, read_series
from sb_edge.engine.source import patches_folder
from sb_edge.util.errors import EngineError

LINES = [f"line {n}" for n in range(1, 10)]


def patch_text(before: str, after: str, *, start: int = 4) -> str:
    """A patch of list.txt that replaces line `start` + 1, with one line of context on either side."""
    return (
        "Why it is there.\n\n--- a/list.txt\n+++ b/list.txt\n"
        f"@@ -{start},3 +{start},3 @@\n line {start}\n-{before}\n+{after}\n line {start + 2}\n"
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "list.txt").write_text("\n".join(LINES) + "\n")
    return tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "patches"
    (folder / "overlay" / "src").mkdir(parents=True)
    (folder / "0001-first.patch").write_text(patch_text("line 5", "five"))
    (folder / "0002-second.patch").write_text(patch_text("five", "FIVE"))
    (folder / "series").write_text(
        "# order matters\n0001-first.patch\n\n0002-second.patch # needs the first\n"
    )
    (folder / "overlay" / "src" / "new.cpp").write_text("int sb_new;\n")
    return folder


def apply(folder: Path, tree: Path) -> None:
    apply_patches(load_patches(folder), tree)


def test_the_repositorys_series_equals_its_files() -> None:
    patch_set = load_patches(patches_folder())
    assert [patch.name for patch in patch_set.patches] == sorted(patch.name for patch in patch_set.patches)


def test_patches_apply_in_order_and_the_overlay_is_added(folder: Path, tree: Path) -> None:
    apply(folder, tree)
    assert (tree / "list.txt").read_text().splitlines()[4] == "FIVE"
    assert (tree / "src" / "new.cpp").read_text() == "int sb_new;\n"


def test_a_repository_around_the_tree_changes_nothing(folder: Path, tree: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tree.parent], check=True)
    apply(folder, tree)
    assert (tree / "list.txt").read_text().splitlines()[4] == "FIVE"


def test_git_variables_change_nothing(folder: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "--quiet", tree.parent], check=True)
    monkeypatch.setenv("GIT_DIR", str(tree.parent / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tree.parent))
    apply(folder, tree)
    assert (tree / "list.txt").read_text().splitlines()[4] == "FIVE"


@pytest.mark.parametrize("changed", ["line 4 changed", " line 4", "line  4"])
def test_context_that_differs_is_refused(
    folder: Path, tree: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "list.txt").write_text((tree / "list.txt").read_text().replace("line 4", changed))
    settings = tree.parent / "gitconfig"
    settings.write_text("[apply]\n\tignoreWhitespace = change\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    with pytest.raises(EngineError, match="does not apply") as caught:
        apply(folder, tree)
    assert "0001-first.patch" in str(caught.value)
    assert "list.txt" in str(caught.value)


def test_the_patch_at_fault_is_named_not_the_first(folder: Path, tree: Path) -> None:
    (folder / "0002-second.patch").write_text(patch_text("six", "SIX"))
    with pytest.raises(EngineError, match=r"0002-second\.patch: the patch does not apply"):
        apply(folder, tree)


@pytest.mark.parametrize("content", ["", "no patch at all\n", patch_text("line 5", "five")[:60]])
def test_a_damaged_patch_is_refused(folder: Path, tree: Path, content: str) -> None:
    (folder / "0001-first.patch").write_text(content)
    with pytest.raises(EngineError, match=r"0001-first\.patch"):
        apply(folder, tree)


def test_a_patch_cannot_reach_outside_the_tree(folder: Path, tree: Path) -> None:
    text = "--- /dev/null\n+++ b/../outside\n@@ -0,0 +1 @@\n+x\n"
    (folder / "0001-first.patch").write_text(text)
    with pytest.raises(EngineError, match=r"0001-first\.patch"):
        apply(folder, tree)
    assert not (tree.parent / "outside").exists()


def test_the_overlay_may_not_overwrite_upstream(folder: Path, tree: Path) -> None:
    (folder / "overlay" / "list.txt").write_text("ours\n")
    with pytest.raises(EngineError, match="would overwrite") as caught:
        apply(folder, tree)
    assert str(folder / "overlay" / "list.txt") in str(caught.value)


def test_the_overlay_holds_plain_files_only(folder: Path) -> None:
    (folder / "overlay" / "link").symlink_to("/etc/passwd")
    with pytest.raises(EngineError, match="not a plain file"):
        load_patches(folder)


def test_an_unlisted_patch_is_refused(folder: Path) -> None:
    (folder / "0003-forgotten.patch").write_text("")
    with pytest.raises(EngineError, match=r"0003-forgotten\.patch: is not listed"):
        load_patches(folder)


def test_a_missing_patch_is_refused(folder: Path) -> None:
    (folder / "0002-second.patch").unlink()
    with pytest.raises(EngineError, match=r"series: 0002-second\.patch: the patch is not there"):
        load_patches(folder)


def test_a_patch_listed_twice_is_refused(folder: Path) -> None:
    (folder / "series").write_text("a.patch\nb.patch\na.patch\n")
    with pytest.raises(EngineError, match=r"a\.patch: a patch is listed twice"):
        read_series(folder / "series")


def test_no_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="not found"):
        load_patches(tmp_path)


def test_no_git_is_said(folder: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tree))
    with pytest.raises(EngineError, match="git is not installed"):
        apply(folder, tree)


def test_the_digest_knows_names_order_and_contents(folder: Path) -> None:
    digests = {load_patches(folder).digest()}
    (folder / "series").write_text("0002-second.patch\n0001-first.patch\n")
    digests.add(load_patches(folder).digest())
    (folder / "overlay" / "src" / "new.cpp").write_text("int sb_newer;\n")
    digests.add(load_patches(folder).digest())
    (folder / "overlay" / "src" / "new.cpp").rename(folder / "overlay" / "new.cpp")
    digests.add(load_patches(folder).digest())
    (folder / "0001-first.patch").write_text(patch_text("line 5", "fifth"))
    digests.add(load_patches(folder).digest())
    assert len(digests) == 5
