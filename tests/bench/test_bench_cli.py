from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from support import exit_code

from sb_edge.bench.baselines import default_baselines, resolve_model
from sb_edge.bench.results import Row
from sb_edge.cli import COMMANDS
from sb_edge.cli.bench import command
from sb_edge.errors import GgufError

run = partial(exit_code, "bench")


def test_help_is_the_one_in_the_list() -> None:
    assert command.get_short_help_str(limit=200) == COMMANDS["bench"][1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--depths", "1,x"], "'1,x' is not a list"),
        (["--depths", ""], "is not a list"),
        (["--type-k", "f17"], "unknown type 'f17'"),
        (["--type-k", "f16,q8_0,f32", "--type-v", "f16,q8_0"], "different numbers of types"),
        (["--plot", "plot.gif"], "does not end in"),
        (["--baseline", "gpt"], "'gpt' is not one of"),
        (["--baseline", "none", "--baseline", "base"], "goes with no other"),
    ],
)
def test_bad_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str) -> None:
    assert run("decode", *arguments) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere.gguf"], "error: nowhere.gguf: not found"),
        (["--csv", "no/such/rows.csv"], "error: no/such: the folder does not exist"),
        (["--json", "no/such/rows.json"], "error: no/such: the folder does not exist"),
        (
            ["--flash-attn", "off", "--type-v", "q8_0"],
            "error: a quantized cache of values needs flash attention",
        ),
    ],
)
def test_bad_input(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("decode", *arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(complaint)
    assert captured.out == ""


def test_baselines_that_go_with_a_model() -> None:
    assert default_baselines(["default", "my.gguf", "1b", "1b"]) == ["base", "llama-1b"]
    assert default_baselines(["my.gguf"]) == []


def test_a_file_is_called_by_its_name(tiny_gguf: Path) -> None:
    assert resolve_model(str(tiny_gguf)).name == "tiny"
    with pytest.raises(GgufError, match="not found"):
        resolve_model("2b")


@pytest.mark.engine
def test_decode_writes_every_format(
    capsys: pytest.CaptureFixture[str], tiny_gguf: Path, tmp_path: Path
) -> None:
    files = {ending: tmp_path / f"rows.{ending}" for ending in ("jsonl", "json", "csv", "md", "svg")}
    code = run(
        "decode", str(tiny_gguf), "-d", "0,1k", "-n", "2", "-r", "2", "-t", "1",
        "--type-k", "f16,q8_0", "--type-v", "f16,q8_0",
        "-o", str(files["jsonl"]), "--json", str(files["json"]), "--csv", str(files["csv"]),
        "--markdown", str(files["md"]), "--plot", str(files["svg"]),
    )  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert len(files["jsonl"].read_text().splitlines()) == 4
    assert [row["n_depth"] for row in json.loads(files["json"].read_text())] == [0, 0, 1024, 1024]
    assert len(files["csv"].read_text().splitlines()) == 5
    assert "tg2 @ d1024" in files["md"].read_text()
    assert files["svg"].stat().st_size > 1000
    assert max(len(line) for line in captured.out.splitlines()) <= 80
    assert "[4/4]" in captured.err


@pytest.mark.engine
def test_json_on_standard_output_stands_alone(capfd: pytest.CaptureFixture[str], tiny_gguf: Path) -> None:
    assert run("decode", str(tiny_gguf), "-d", "0", "-n", "1", "-r", "1", "-t", "1", "--json", "-") == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert Row.model_validate_json(json.dumps(row)).model == "tiny"


@pytest.mark.engine
def test_fill_compares(capsys: pytest.CaptureFixture[str], tiny_llama: Path) -> None:
    assert run("fill", str(tiny_llama), "-d", "64", "-n", "1", "-r", "1", "-t", "1") == 0
    assert "synthetic / real = " in capsys.readouterr().out
