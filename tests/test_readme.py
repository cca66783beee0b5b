"""The README and the examples do what they say: every command in them is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sb_edge.bench.report.results_docs import machine_pages

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "docs/gguf.md",
    "docs/benchmarks.md",
    "docs/spikes.md",
    "docs/sparse.md",
    "docs/distill.md",
    "docs/evaluation.md",
)


def commands(document: str) -> list[str]:
    """The lines of a document's ```sh blocks."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        line
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
        if line
    ]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    scripts = tmp_path / "bin"
    scripts.mkdir()
    (scripts / "sb-edge").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sb_edge "$@"\n')
    (scripts / "sb-edge").chmod(0o755)
    return {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_a_document(document: str, tmp_path: Path, environment: dict[str, str]) -> None:
    pytest.importorskip("torch", reason="`sb-edge parity` with a checkpoint needs PyTorch")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for line in commands(document):
        run(["sh", "-c", line], tmp_path, environment)


def test_the_readme_has_commands() -> None:
    assert len(commands("README.md")) >= 10


@pytest.mark.parametrize("example", ["from_checkpoint.sh", "transplant.sh"])
def test_shell_examples(example: str, tmp_path: Path, environment: dict[str, str]) -> None:
    pytest.importorskip("torch", reason="`sb-edge parity` with a checkpoint needs PyTorch")
    run([str(ROOT / "examples" / example)], tmp_path, environment)


def test_the_generation_example(tmp_path: Path, environment: dict[str, str]) -> None:
    text = run([sys.executable, str(ROOT / "examples" / "generate.py")], tmp_path, environment)
    assert text.strip()


def test_the_sizes_of_models_are_those_of_the_readme(environment: dict[str, str]) -> None:
    printed = run([sys.executable, str(ROOT / "examples" / "model_sizes.py")], ROOT, environment)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for size in re.findall(r"(\d+\.\d+) GiB", next(line for line in printed.splitlines() if "7b" in line)):
        assert f"{float(size):.1f}" in readme


def test_results_are_those_of_the_committed_rows() -> None:
    rows = sorted((ROOT / "bench" / "results").glob("*.jsonl"))
    pages = machine_pages(rows)
    assert pages
    assert {
        path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "results").iterdir()
    } == pages


def test_links_lead_somewhere() -> None:
    for document in ROOT.rglob("*.md"):
        if any(part.startswith(".") or part in ("build", "out") for part in document.relative_to(ROOT).parts):
            continue
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (document.parent / link).exists(), f"{document.name}: {link}"
