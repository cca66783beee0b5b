"""Text of packages: fetched files are checked, members become text, shares and held-out text are kept."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sb_edge.distill.base import load_base
from sb_edge.distill.text.package_text import Package, fetch, listed_packages, package_documents
from sb_edge.distill.text.render import ROWS, render
from sb_edge.distill.text.tokenizer import Tokenizer
from sb_edge.evaluate.perplexity import held_out_text
from sb_edge.util.errors import TrainingError
from sb_edge.util.hashes import sha256_of


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Tokenizer:
    return Tokenizer(load_base(tiny_base, torch.device("cpu")).reader)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of packages in a cache of this test's own."""
    monkeypatch.setenv("SB_EDGE_CACHE", str(tmp_path))
    (tmp_path / "packages").mkdir()
    return tmp_path / "packages"


def package(path: Path, **changes: Any) -> Package:
    """The entry of a file named NAME_VERSION.deb or .whl."""
    name, _, version = path.stem.partition("_")
    entry: dict[str, Any] = {
        "registry": "debian" if path.suffix == ".deb" else "pypi",
        "name": name,
        "version": version,
        "sha256": sha256_of(path),
        "licence": "MIT",
        "kind": "prose",
        "share": 1.0,
        "files": ("docs/*",),
    }
    return Package(**(entry | changes))


def wheel(path: Path, members: Mapping[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def paragraph(number: int) -> str:
    return f"Paragraph {number} tells of a lantern, and of the keeper who lit it every evening. " * 4


def test_the_list_covers_five_kinds_and_adds_up() -> None:
    packages = listed_packages()
    assert {entry.kind for entry in packages} == {"prose", "technical", "code", "dialogue", "tables"}
    assert sum(entry.share for entry in packages) == pytest.approx(1)
    assert len({(entry.registry, entry.name) for entry in packages}) == len(packages)
    assert all(len(entry.sha256) == 64 and entry.version and entry.licence for entry in packages)


def test_members_become_documents_of_their_package(cache: Path, tokenizer: Tokenizer) -> None:
    """By pattern, a star within one folder; compressed files, too; short ones are left out."""
    path = wheel(
        cache / "thing_1.0.whl",
        {
            "docs/a.txt": paragraph(1),
            "docs/b.txt.gz": gzip.compress(paragraph(2).encode()),
            "docs/deep/c.txt": paragraph(3),
            "other/d.txt": paragraph(4),
            "docs/short.txt": "Too short.",
        },
    )
    found = list(package_documents([package(path)], tokenizer, 10_000, 0))
    assert {document.source: document.text for document in found} == {
        "thing/docs/a.txt": paragraph(1).strip(),
        "thing/docs/b.txt.gz": paragraph(2).strip(),
    }
    assert {(document.licence, document.kind) for document in found} == {("MIT", "prose")}


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")
def test_a_debian_package_is_read_without_unpacking(
    cache: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: thing\nVersion: 1:2.0\nArchitecture: all\nMaintainer: nobody\nDescription: text\n"
    )
    (tree / "docs").mkdir()
    (tree / "docs" / "a.txt").write_text(paragraph(1))
    path = cache / "thing_1%3a2.0.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(path)], check=True, capture_output=True)
    (document,) = package_documents([package(path, version="1:2.0")], tokenizer, 10_000, 0)
    assert (document.source, document.text) == ("thing/docs/a.txt", paragraph(1).strip())


def test_shares_seeds_and_held_out_text(cache: Path, tokenizer: Tokenizer) -> None:
    many = wheel(cache / "many_1.whl", {f"docs/{number:02}.txt": paragraph(number) for number in range(40)})
    few = wheel(cache / "few_1.whl", {f"docs/{number}.txt": paragraph(100 + number) for number in range(40)})
    held = next(part for part in held_out_text().split("\n\n") if len(part) > 300)
    leaking = wheel(cache / "leaking_1.whl", {"docs/a.txt": f"{paragraph(1)}\n\n{held}"})
    packages = [
        package(many, share=0.75),
        package(few, share=0.25, kind="code"),
        package(leaking, share=0.25),
    ]

    def drawn(seed: int) -> list[tuple[str, str]]:
        found = list(package_documents(packages, tokenizer, 8000, seed))
        assert {document.kind for document in found} == {"prose", "code"}
        return [(document.source, document.text) for document in found]

    first = drawn(0)
    assert first == drawn(0) != drawn(1)
    sizes = {
        name: sum(len(tokenizer.encode(text)) + 1 for source, text in first if source.startswith(name))
        for name in ("many", "few", "leaking")
    }
    longest = max(len(tokenizer.encode(text)) for _, text in first) + 1
    assert 6000 - longest < sizes["many"] <= 6000
    assert 2000 - longest < sizes["few"] <= 2000
    assert sizes["leaking"] == 0


def test_a_long_document_is_cut_at_empty_lines(cache: Path, tokenizer: Tokenizer) -> None:
    path = wheel(cache / "long_1.whl", {"docs/a.txt": "\n\n".join(map(paragraph, range(100)))})
    found = [document.text for document in package_documents([package(path)], tokenizer, 100_000, 0)]
    assert len(found) > 3
    assert all(len(text) <= 6100 for text in found)
    parts = sorted(part.strip() for text in found for part in text.split("\n\n"))
    assert parts == sorted(paragraph(number).strip() for number in range(100))


def test_another_file_than_listed_is_refused(cache: Path) -> None:
    path = wheel(cache / "thing_1.0.whl", {"docs/a.txt": paragraph(1)})
    entry = package(path)
    assert fetch(entry, cache) == path
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(
        TrainingError, match=r"thing_1\.0\.whl: is another file than listed \(found .*remove it"
    ):
        fetch(entry, cache)


def test_a_package_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    """Of a version that no list knows, so that nothing is asked of a network."""
    entry = listed_packages()[0].model_copy(update={"name": "sb-edge-has-no-such-package", "version": "0"})
    with pytest.raises(
        TrainingError, match=r"sb-edge-has-no-such-package 0: cannot be fetched from debian.*put the file"
    ):
        fetch(entry, tmp_path)
    assert not list(tmp_path.glob("*.deb"))


def test_a_page_becomes_markdown_without_navigation() -> None:
    page = (
        '<?xml version="1.0"?><html><head><title>x</title></head><body><nav>Home</nav>'
        '<div class="sidebar">Menu</div><h2>Locks</h2><p>A <a href="x">gate</a> opens.</p>'
        "<ul><li>one</li><li>two</li></ul><script>run()</script><footer>End</footer></body></html>"
    )
    assert render(page, "page") == "## Locks\n\nA gate opens.\n\n- one\n- two"


def test_mallard_becomes_markdown() -> None:
    page = (
        '<page xmlns="http://projectmallard.org/1.0/"><info><desc>Hidden</desc></info><title>Print</title>'
        "<p>Before you start:</p>"
        "<steps><item><p>Open it.</p></item><item><p>Print it.</p></item></steps></page>"
    )
    text = render(page, "page")
    assert "Hidden" not in text
    assert text.startswith("## Print\n\nBefore you start:")
    assert "1. Open it." in text and "2. Print it." in text


def test_long_csv_becomes_tables_with_headings() -> None:
    rows = "".join(f"{number},{number * number}\n" for number in range(ROWS + 1))
    first, second = render("n,square\n" + rows, "csv").split("\n\n")
    assert first.splitlines()[:3] == ["| n | square |", "| --- | --- |", "| 0 | 0 |"]
    assert len(first.splitlines()) == ROWS + 2
    assert second.splitlines() == ["| n | square |", "| --- | --- |", f"| {ROWS} | {ROWS * ROWS} |"]


def test_conversations_are_what_is_said_in_a_mission() -> None:
    mission = (
        'mission "Far"\n\tconversation\n\t\t`"You will carry this crate," the captain says.`\n'
        "\t\t`\tShort.`\n\t\t`You nod, and the crate is loaded.`\n"
        'mission "Empty"\n\tname `x`\n'
    )
    assert render(mission, "conversation") == (
        '"You will carry this crate," the captain says.\n\nYou nod, and the crate is loaded.'
    )
