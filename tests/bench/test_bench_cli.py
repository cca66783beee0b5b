from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click
import pytest
from support import exit_code, refusal

from sb_edge.bench.rows.row import Row
from sb_edge.cli import COMMANDS
from sb_edge.cli.bench import command
from sb_edge.cli.bench_options import resolve_model
from sb_edge.cli.bench_results import RowsOf
from sb_edge.cli.params import TokenCounts
from sb_edge.models.registry import BASELINES, default_baselines
from sb_edge.util.errors import GgufError

run = partial(exit_code, "bench")


def test_help_is_the_one_in_the_list() -> None:
    assert command.get_short_help_str(limit=200) == COMMANDS["bench"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--depths", "1,x"], "'x' is not a number of tokens such as"),
        (["--depths", ""], "'' is not a number of tokens"),
        (["--cache-type-k", "f17"], "unknown type 'f17'"),
        (["--cache-type-k", "f16,q8_0,f32", "--cache-type-v", "f16,q8_0"], "need the same number of types"),
        (["--plot", "plot.gif"], "does not end in"),
        (["--time-budget", "-1"], "not in the range"),
        (["--warm-up", "0"], "not in the range"),
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
            ["--flash-attn", "off", "--cache-type-v", "q8_0"],
            "error: a quantized V cache needs flash attention",
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
    assert refusal(capsys, "bench", "decode", *arguments).startswith(complaint)


def test_baselines_that_go_with_a_model() -> None:
    assert default_baselines(["default", "my.gguf", "1b", "1b"]) == ["base", "llama-1b"]
    assert default_baselines(["my.gguf"]) == []


def test_every_baseline_is_a_name() -> None:
    assert set(BASELINES) == {"base", "llama-1b", "lfm2-1.2b", "rwkv7-1.5b"}


def test_the_choices_of_baselines_are_the_ones_there_are() -> None:
    (option,) = (option for option in command.commands["decode"].params if option.name == "baselines")
    assert isinstance(option.type, click.Choice)
    assert [*option.type.choices] == [*BASELINES, "none"]


def test_depths_have_units() -> None:
    assert TokenCounts().convert("0, 100,64k,1M", None, None) == (0, 100, 65536, 1048576)


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
        "--cache-type-k", "f16,q8_0", "--cache-type-v", "f16,q8_0",
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
    assert exit_code("selftest", "fill", str(tiny_llama), "-d", "64", "-n", "1", "-r", "1", "-t", "1") == 0
    assert "synthetic / real = " in capsys.readouterr().out


@pytest.mark.engine
def test_memory_is_forecast_and_measured(
    capsys: pytest.CaptureFixture[str], tiny_gguf: Path, tmp_path: Path
) -> None:
    document = tmp_path / "memory.json"
    options = ["--cache-type-k", "f16,f32", "--cache-type-v", "f16,f32", "-t", "1", "--json", str(document)]
    assert exit_code("selftest", "memory", str(tiny_gguf), "-d", "256,1k", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("f32/f32" in line for line in lines) == 2
    cases = json.loads(document.read_text())
    assert [case["model"] for case in cases] == ["tiny"] * 4
    assert [case["n_ctx"] for case in cases] == [256, 256, 1024, 1024]
    for case in cases:
        assert case["measured"]["kv"] == pytest.approx(case["forecast"]["kv"], rel=0.01, abs=20000)
        assert case["ratio"] == pytest.approx(case["forecast"]["total"] / case["measured"]["resident"])


@pytest.mark.engine
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-d", "0"], "error: n_ctx: must be positive (found 0)"),
        (
            ["-d", "900m", "--cache-type-k", "f32", "--cache-type-v", "f32"],
            "will not fit in memory: it needs ",
        ),
        (["--flash-attn", "off", "--cache-type-v", "q8_0"], "the engine cannot make a context"),
    ],
)
def test_memory_that_cannot_be_measured(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, arguments: list[str], complaint: str
) -> None:
    assert complaint in refusal(capsys, "selftest", "memory", tiny_llama, "-t", "1", *arguments)


@pytest.mark.engine
def test_from_prompts_to_comparison_and_report(
    capsys: pytest.CaptureFixture[str], tiny_gguf: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    rows, plot, page = (tmp_path / name for name in ("rows.jsonl", "plot.svg", "page.html"))
    options = ["-t", "1", "-r", "2", "-o", str(rows)]
    models = [str(tiny_gguf), str(tiny_llama)]
    code = run("prefill", *models, "-d", "0,64", "-p", "8", "--plot", str(plot), *options)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "TTFT" in captured.out
    assert "pp8 @ d64" in captured.out
    assert "95 % interval" in captured.out
    assert max(len(line) for line in captured.out.splitlines()) <= 80
    assert "Time to the first token" in plot.read_text()

    assert run("decode", *models, "-d", "64", "-n", "2", *options) == 0
    capsys.readouterr()
    comparison = tmp_path / "comparison.json"
    assert run("compare", f"{rows}:tiny", f"{rows}:llama", "--json", str(comparison)) == 0
    found = json.loads(comparison.read_text())
    assert [one["label"] for one in found] == ["tg2 @ d64", "pp8", "pp8 @ d64"]
    assert all(one["ratio"] > 0 and one["paired"] for one in found)
    assert found[2]["ttft_ratio"] > 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 80

    assert run("report", str(rows), "-o", str(page)) == 0
    text = page.read_text(encoding="utf-8")
    for expected in ("Decode speed over a baseline", "published", "Time to the first token", "Ratios"):
        assert expected in text


@pytest.mark.engine
def test_a_spent_budget_is_said(capsys: pytest.CaptureFixture[str], tiny_gguf: Path) -> None:
    assert run("decode", str(tiny_gguf), "-d", "0", "-t", "1", "--time-budget", "0") == 0
    captured = capsys.readouterr()
    assert "time budget spent; left out: tiny tg32; with --output a later run would continue" in (
        " ".join(captured.err.split())
    )
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["compare", "no.jsonl", "no.jsonl"], "error: no.jsonl: cannot be read: No such file"),
        (["report", "no.jsonl"], "error: no.jsonl: cannot be read: No such file"),
        (["report", "empty.jsonl"], "error: empty.jsonl: there are no rows"),
        (["compare", "notes.txt", "empty.jsonl"], "error: notes.txt: line 1: is not a benchmark row"),
    ],
)
def test_files_without_rows(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.txt").write_text("notes")
    assert refusal(capsys, "bench", *arguments).startswith(complaint)
    assert (tmp_path / "notes.txt").read_text() == "notes"


def test_a_colon_names_a_model_unless_the_file_has_it(tmp_path: Path) -> None:
    odd = tmp_path / "rows:1b"
    odd.touch()
    assert RowsOf().convert(str(odd), None, None) == (odd, None)
    assert RowsOf().convert("rows.jsonl:1b", None, None) == (Path("rows.jsonl"), "1b")
