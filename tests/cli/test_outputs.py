"""Every output of every command is checked before the command runs; no input is replaced by it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from support import exit_code, refusal

from sb_edge.cli import cli
from sb_edge.cli.file_options import FileCommand, OutputFile

INPUT = "INPUT"  # replaced by the file that the command reads
SOURCES = (
    ("inspect", INPUT, "--json"),
    ("quantize", INPUT, "OUT", "Q4_0"),
    ("sparsify", INPUT, "OUT", "--text", "TEXT"),
    ("spikes", "set", INPUT, "OUT", "3"),
    ("spikes", "tune", INPUT, "OUT", "--text", "TEXT"),
    ("spikes", "tune", "MODEL", "OUT", "--text", INPUT),
    ("spikes", "stats", INPUT, "--json"),
    ("spikes", "raster", INPUT, "-p", "x", "-o"),
    ("generate", INPUT, "-p", "x", "--save-state"),
    ("generate", "MODEL", "-f", INPUT, "--save-state"),
    ("generate", "MODEL", "-p", "x", "--lora", INPUT, "--save-state"),
    ("chat", INPUT, "-p", "x", "--save-session"),
    ("eval", "MODEL", "--base", INPUT, "--markdown"),
    ("eval", "MODEL", "--base", "BASE", "--text", INPUT, "--json"),
    ("eval", "MODEL", "--base", "BASE", "--questions", INPUT, "--json"),
    ("parity", "MODEL", "--golden", INPUT, "--json"),
    ("bench", "decode", INPUT, "--csv"),
    ("bench", "decode", INPUT, "--markdown"),
    ("bench", "decode", INPUT, "--plot"),
    ("bench", "decode", INPUT, "-o"),
    ("bench", "report", INPUT, "-o"),
    ("bench", "report", "ROWS", INPUT, "-o"),
    ("bench", "compare", f"{INPUT}:1b", INPUT, "--json"),
    ("selftest", "memory", INPUT, "--json"),
)


def line(parts: tuple[str, ...], source: Path, target: Path) -> list[object]:
    """A command line that reads `source` and writes `target`."""
    named = [target if part == "OUT" else part.replace(INPUT, str(source)) for part in parts]
    return named if "OUT" in parts else [*named, target]


@pytest.mark.parametrize("parts", SOURCES, ids=" ".join)
def test_no_output_replaces_an_input(
    parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "input"
    source.write_bytes(b"content")
    (tmp_path / "link").symlink_to(source)
    os.link(source, tmp_path / "second")
    for name in ("input", "link", "second"):
        assert "is the input" in refusal(capsys, *line(parts, source, tmp_path / name))
    assert source.read_bytes() == b"content"


def test_a_part_of_a_split_model_is_an_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00002.gguf").touch()
    first, second = sorted(tmp_path.iterdir())
    assert "is the input" in refusal(capsys, "inspect", first, "--json", second)


def test_a_file_of_a_checkpoint_is_an_input(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = data / "gla_swa" / "model.safetensors"
    before = weights.read_bytes()
    assert "is the input" in refusal(
        capsys, "parity", "MODEL", data / "gla_swa", "--json", data / "gla_swa" / "config.json"
    )
    assert "is the input" in refusal(capsys, "convert", data / "gla_swa", "--outfile", weights)
    assert weights.read_bytes() == before


def test_two_outputs_need_two_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = tmp_path / "same"
    found = refusal(capsys, "eval", "MODEL", "--base", "BASE", "--markdown", same, "--json", same)
    assert "is given for two outputs" in found


@pytest.mark.parametrize(
    ("target", "complaint"),
    [("absent/out", "the folder does not exist"), (".", "is a folder"), ("file/out", "Not a directory")],
)
def test_the_place_of_an_output_is_checked_before_the_command_runs(
    target: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for parts in SOURCES:
        # A command that read this empty input first would complain of its content.
        assert complaint in refusal(capsys, *line(parts, tmp_path / "file", tmp_path / target))


@pytest.mark.parametrize("name", ["/dev/null", "fifo"])
def test_a_device_stays_a_device(name: str, golden_gguf: Path, tmp_path: Path) -> None:
    target = tmp_path / name
    if name == "fifo":
        os.mkfifo(target)
    before = target.stat().st_mode
    reader = os.open(target, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert exit_code("inspect", golden_gguf, "--json", target) == 0
        found = os.read(reader, 1 << 20)
    finally:
        os.close(reader)
    assert stat.S_IFMT(target.stat().st_mode) == stat.S_IFMT(before)
    assert (b"spikingbrain" in found) == (name == "fifo")


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    with click.Context(group) as context:
        for name in group.list_commands(context):
            found = group.get_command(context, name)
            assert found is not None
            if isinstance(found, click.Group):
                yield from commands(found, f"{path}{name} ")
            else:
                yield f"{path}{name}", found


FOLDERS = {"init", "transplant", "upcycle", "distill", "demo", "convert", "engine refresh-patches"}
"""Commands whose output is a folder, or may be one."""


def test_every_output_is_declared_as_one() -> None:
    writes = {"json_target", "output", "target", "markdown", "csv", "save_state", "save_session"}
    for path, command in commands(cli):
        outputs = [param for param in command.params if param.name in writes and path not in FOLDERS]
        for param in outputs:
            assert isinstance(param.type, OutputFile), f"{path}: {param.name}"
        assert not outputs or isinstance(command, FileCommand), path
