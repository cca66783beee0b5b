from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from support import SB_EDGE, exit_code, refusal, sb_edge

from sb_edge.cli import COMMANDS, cli
from sb_edge.cli.run import with_files
from sb_edge.models.registry import resolve_gguf

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_they_say(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.get_short_help_str(200) == COMMANDS[name]


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from sb_edge.cli import cli; cli.main(['--help'], standalone_mode=False); "
        "heavy = {'numpy', 'torch', 'rich', 'pydantic', 'matplotlib', 'gguf'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_inspect_imports_no_build_tool_and_no_plots(golden_gguf: Path) -> None:
    code = (
        f"import sys; from sb_edge.cli import cli; cli.main(['inspect', {str(golden_gguf)!r}], "
        "standalone_mode=False); "
        "heavy = {'cmake', 'ninja', 'torch', 'pydantic', 'matplotlib', 'scipy', 'gguf'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_reference_is_up_to_date(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "sb_edge.cli.reference", str(tmp_path / "cli.md")], check=True)
    subprocess.run(
        [sys.executable, "-m", "sb_edge.cli.reference", "--api", str(tmp_path / "api.md")], check=True
    )
    for name in ("cli.md", "api.md"):
        committed = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert committed == (tmp_path / name).read_text(encoding="utf-8"), "run `make docs`"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["convert", "no/such/folder"], 1, "no/such/folder: not found"),
        (["inspect", "no-such.gguf"], 1, "built-in model: default"),
        (["generate", "no-such.gguf", "-p", "x"], 1, "not found"),
        (["transplant", "no/such/base", "-o", "x"], 1, "not found"),
        (["convert", "--outtype", "q9", "x"], 2, "Invalid value"),
        (["generate"], 2, "Missing argument"),
        (["no-such-command"], 2, "No such command"),
        (["transplant", "x", "-o", "y", "--gla-layers", "a-b"], 2, "--gla-layers"),
        (["transplant", "x", "-o", "y", "--gla-layers", "3-1"], 2, "'3-1' is not a list"),
    ],
)
def test_errors_are_one_line_with_the_right_status(arguments: list[str], status: int, message: str) -> None:
    done = sb_edge(*arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if status == 1:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["parity", "-m", "absent.gguf", "checkpoint"], "absent.gguf: not found"),
        (["bench", "decode", "-m", "absent.gguf", "-n", "1k", "--warm-up", "1k"], "absent.gguf: not found"),
        (["bench", "prefill", "--model", "absent.gguf"], "absent.gguf: not found"),
        (["selftest", "memory", "-m", "absent.gguf"], "absent.gguf: not found"),
        (["models", "--json", "/proc/x"], "/proc: the folder is not writable"),
    ],
)
def test_refused_before_any_work(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat", "x", "-sys", "x", "--load-session", "y"],
        ["selftest", "fill"],
        ["parity", "x", "y", "-m", "z"],
    ],
)
def test_options_that_exclude_each_other(arguments: list[str]) -> None:
    assert exit_code(*arguments) == 2


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--tensors"]])  # written by click, by rich
def test_a_reader_that_has_gone_ends_the_command_quietly(arguments: list[str], golden_gguf: Path) -> None:
    command = [*SB_EDGE, *arguments, *([golden_gguf] if arguments[0] == "inspect" else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (141, b"")


@pytest.mark.engine
def test_help_of_run_lists_the_tools(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("run", "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: ") and "\nllama-bench\n" in shown


@pytest.mark.engine
def test_tools_get_the_files_of_built_in_models() -> None:
    file = str(resolve_gguf("default"))
    given = ["-m", "default", "--model", "default", "--model=default", "-p", "default", "--model=x.gguf"]
    expected = ["-m", file, "--model", file, f"--model={file}", "-p", "default", "--model=x.gguf"]
    assert list(with_files(given)) == expected


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in sb_edge("--debug", "convert", "no/such/folder").stderr


def test_packages_equal_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name: Path(folder) for name, folder in settings["package-dir"].items()}
    found = {"sb_edge"}
    for name, folder in folders.items():
        found.add(name)
        for module in (ROOT / folder).rglob("__init__.py"):
            inner = module.parent.relative_to(ROOT / folder).parts
            if inner:
                found.add(".".join([name, *inner]))
    assert set(settings["packages"]) == found
    # every folder at the top that holds a package is mapped
    tops = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert tops == {str(folder) for folder in folders.values()}


@pytest.mark.parametrize("name", ["convert", "quant", "bench", "distill"])
def test_packages_refuse_to_be_imported_from_the_root(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"import this package as sb_edge.{name}" in done.stderr
