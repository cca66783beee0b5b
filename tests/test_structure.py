"""Floors, folders, names and imports of the tree, as CONTRIBUTING.md describes them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from typecheck import ROOT, lay_out

LINTER = Path(sys.executable).parent / "lint-imports"
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
FOLDERS = [ROOT / folder for folder in SETUP["package-dir"].values()]
MOST_MODULES = 16
MOST_INNER_IMPORTS = 40


@cache
def modules() -> dict[Path, ast.Module]:
    """Every module of the package, parsed."""
    files = sorted(file for folder in FOLDERS for file in folder.rglob("*.py"))
    return {file.relative_to(ROOT): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def lint(tree: Path) -> tuple[int, str]:
    done = subprocess.run(
        [LINTER, "--no-cache", "--no-logo", ROOT / "pyproject.toml"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_import_contract_is_kept_and_sees_every_folder(tmp_path: Path) -> None:
    lay_out(tmp_path / "tree")
    status, report = lint(tmp_path / "tree")
    found = re.search(r"Analyzed (\d+) files", report)
    assert found, report
    assert int(found[1]) == len(modules())
    assert status == 0, report


@pytest.mark.parametrize(
    ("module", "planted", "broken"),
    [
        ("util/errors.py", "from sb_edge.system import cpu", "util is not allowed to import sb_edge.system"),
        (
            "quant/quantize.py",
            "import sb_edge.distill.base",
            "quant is not allowed to import",
        ),
        ("convert/vocab/bpe.py", "import sb_edge.convert.metadata", "vocab is not allowed to import"),
        ("bench/rows/row.py", "import sb_edge.bench.speed.plan", "rows is not allowed to import"),
        ("models/registry.py", "def late():\n    import sb_edge.cli", "models is not allowed to import"),
        ("__init__.py", "import sb_edge.cli", "Illegal imports of protected package sb_edge.cli"),
        ("arch/config.py", "import sb_edge.arch.tensors", "No cycles are allowed in sb_edge.arch"),
    ],
)
def test_an_upward_import_and_a_cycle_break_the_contract(
    module: str, planted: str, broken: str, tmp_path: Path
) -> None:
    lay_out(tmp_path / "tree", copy=True)
    with (tmp_path / "tree" / "sb_edge" / module).open("a", encoding="utf-8") as stream:
        stream.write(f"\n{planted}\n")
    status, report = lint(tmp_path / "tree")
    assert status != 0
    assert broken in " ".join(report.split())


def test_a_folder_has_few_modules() -> None:
    counts: defaultdict[Path, int] = defaultdict(int)
    for path in modules():
        counts[path.parent] += path.name != "__init__.py"
    large = {
        str(folder): count
        for folder, count in counts.items()
        if count > MOST_MODULES and folder.parts[:2] != ("sb_edge", "cli")
    }
    assert not large


def names_used_twice() -> dict[str, list[str]]:
    """Names of modules and classes with more than one place; modules of commands are named after these."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path, tree in modules().items():
        commands = [node for node in tree.body if getattr(node, "name", None) == "command"]
        if not path.stem.startswith("__") and not commands:
            places[path.stem].append(str(path))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path))
    return {name: found for name, found in places.items() if len(found) > 1}


def allowed_twice() -> set[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("\n## Names used twice\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^- `(\w+)`: \w.+$", section, re.MULTILINE))


def test_names_are_used_once_but_for_the_list_in_contributing() -> None:
    used = names_used_twice()
    allowed = allowed_twice()
    assert {name: places for name, places in used.items() if name not in allowed} == {}
    assert allowed - set(used) == set(), "listed in CONTRIBUTING.md, but used once"


def inner_imports() -> Iterator[str]:
    for path, tree in modules().items():
        lines = {
            inner.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for inner in ast.walk(node)
            if isinstance(inner, ast.Import | ast.ImportFrom)
        }
        yield from (f"{path}:{line}" for line in sorted(lines))


def test_few_imports_are_inside_functions() -> None:
    found = list(inner_imports())
    assert len(found) <= MOST_INNER_IMPORTS, "\n".join(found)


def imported_by(*arguments: str) -> set[str]:
    """Names of all modules that a command of `sb-edge` imports."""
    code = (
        "import sys; from sb_edge.cli import main; "
        "sys.stdout = open('/dev/null', 'w'); "
        f"main({list(arguments)!r}); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_imports_no_command() -> None:
    found = imported_by("--help")
    commands = {name for name in found if re.fullmatch(r"sb_edge\.(?!cli$|util).+", name)}
    assert commands == set()
    assert {"numpy", "torch", "rich", "pydantic", "matplotlib", "gguf"} & found == set()


def test_inspect_imports_no_build_tool_and_no_engine(tiny_gguf: Path) -> None:
    heavy = {"cmake", "ninja", "matplotlib", "scipy", "torch", "llama_cpp"}
    assert heavy & imported_by("inspect", str(tiny_gguf)) == set()
