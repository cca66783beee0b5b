from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from support import exit_code, refusal

from sb_edge.arch.coding import Coding
from sb_edge.cli import COMMANDS
from sb_edge.cli.spikes import command
from sb_edge.models.registry import resolve_gguf
from sb_edge.quant.quantize import quantize

run = partial(exit_code, "spikes")


def test_help_is_the_one_in_the_list() -> None:
    assert command.get_short_help_str(limit=200) == COMMANDS["spikes"]


def test_codings_are_those_of_the_library() -> None:
    (choice,) = (param.type for param in command.commands["raster"].params if param.name == "coding")
    assert [*choice.choices] == [*Coding, "all"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["stats"], "Missing argument 'MODEL'"),
        (["stats", "default", "-m", "default"], "either as MODEL or with -m"),
        (["stats", "default", "--spike-k", "0"], "'0' is not a positive number"),
        (["stats", "default", "--spike-k", "nan"], "'nan' is not a positive number"),
        (["sweep", "default", "--k", "2,x"], "'x' is not a positive number"),
        (["sweep", "default", "--k", "2,-1"], "'-1' is not a positive number"),
        (["raster", "default"], "Missing option '-p'"),
        (["raster", "default", "-p", "x", "--coding", "rate"], "'rate' is not one of"),
    ],
)
def test_bad_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str) -> None:
    assert run(*arguments) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["stats", "nowhere.gguf"], "error: nowhere.gguf: not found"),
        (["stats", "default", "--text", "nowhere.txt"], "error: nowhere.txt: No such file"),
        (
            ["stats", "default", "--text", "latin-1.txt"],
            "error: latin-1.txt: is not UTF-8 text (found byte 3)",
        ),
        (["stats", "default", "--plot", "no/such"], "error: no: the folder does not exist"),
        (["sweep", "default", "--plot", "latin-1.txt"], "error: latin-1.txt: is a file"),
        (["raster", "default", "-p", "x", "-o", "x.gif"], "error: x.gif: unknown kind of plot"),
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
    (tmp_path / "latin-1.txt").write_bytes("caf\xe9".encode("latin-1"))
    assert refusal(capsys, "spikes", *arguments).startswith(complaint)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["stats", "default-base"], "has no spikes (found llama, expected spikingbrain)"),
        (
            ["raster", "default", "-p", "x", "--layer", "30"],
            "--layer: no such layer (found 30, expected 0 to 29)",
        ),
        (["raster", "default", "-p", "x", "--projection", "attn_w"], "no such projection (found 'attn_w'"),
        (
            ["raster", "default", "-p", "x", "--layer", "1", "--projection", "ssm_f"],
            "ssm_f of layer 1: its input is not coded",
        ),
        (["raster", "default", "-p", "x", "--coding", "binary"], "coding binary: carries no negative counts"),
        (["raster", "default", "-p", ""], "no tokens to evaluate"),
        (["sweep", "default", "--text", "word.txt"], "the text is too short"),
    ],
)
def test_what_a_model_cannot_do(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "word.txt").write_text("x", encoding="utf-8")
    assert run(*arguments) == 1
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.glob("raster*"))


@pytest.mark.engine
def test_stats_of_the_default_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "stats.json"
    assert (
        run("stats", "default", "--tokens", "48", "--json", str(target), "--plot", str(tmp_path / "p")) == 0
    )
    captured = capsys.readouterr()
    assert "stores no spikes: coding every projection with k = 3" in captured.err
    assert max(len(line.rstrip()) for line in captured.out.splitlines()) <= 80
    document = json.loads(target.read_text())
    assert document["tokens"] == 48
    assert len(document["layers"]) == 30 * 4
    assert document["total"]["entries"] == 48 * 30 * (576 * 3 + 1536)
    assert 0.5 < document["total"]["window_sparsity"] < 0.9
    assert document["energy"]["other_macs"] >= 49152 * 576
    assert len(list((tmp_path / "p").iterdir())) == 4


@pytest.mark.engine
@pytest.mark.parametrize("distribution", ["gaussian", "laplacian"])
def test_the_engine_s_counters_agree_with_the_closed_form(
    capsys: pytest.CaptureFixture[str], distribution: str, tmp_path: Path
) -> None:
    target = tmp_path / "check.json"
    assert exit_code("selftest", "spikes", distribution, "--json", str(target)) == 0
    check = json.loads(target.read_text())
    assert check["largest_difference"] < check["tolerance"] == 0.01
    assert len(check["comparisons"]) == 6
    assert "window_sparsity" in capsys.readouterr().out


@pytest.mark.engine
def test_a_coarser_code_loses_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", "default", "--k", "0.5,4", "--tokens", "64", "--json", "-") == 0
    captured = capsys.readouterr()
    coarse, fine = json.loads(captured.out)["points"]
    assert coarse["ratio"] > 1.1
    assert coarse["ratio"] > fine["ratio"]
    assert coarse["window_sparsity"] > fine["window_sparsity"]
    assert "k = 0.5: perplexity" in captured.err


@pytest.mark.engine
def test_the_limit_loses_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In F32, where the product without spikes does not round its activations."""
    model = tmp_path / "f32.gguf"
    quantize(resolve_gguf("default"), model, "F32", allow_requantize=True)
    assert run("sweep", str(model), "--k", "1000", "--tokens", "48", "--json", "-") == 0
    (limit,) = json.loads(capsys.readouterr().out)["points"]
    assert abs(limit["ratio"] - 1) < 1e-3


@pytest.mark.engine
def test_rasters_of_the_default_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        run("raster", "default", "-p", "The keeper slept.", "--layer", "3", "--projection", "ffn_down") == 0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raster.png", "raster.svg"]
    assert capsys.readouterr().out.split() == ["wrote", "raster.png", "wrote", "raster.svg"]
    assert "Input of ffn_down, layer 3, k = 3" in (tmp_path / "raster.svg").read_text(encoding="utf-8")
