"""Table and plots of tuning, from made-up measurements."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sb_edge.arch.spike_plan import CodedInput, SpikePlan
from sb_edge.bench.spikes.tuning_plot import save_tuning
from sb_edge.bench.spikes.tuning_table import tuning_table
from sb_edge.quant.spikes.k_tuning import Figures, Kind, TunedPoint, Tuning
from sb_edge.util.errors import OutputError

SITES = (
    CodedInput(0, ("attn_q", "attn_k", "attn_v", "ssm_f")),
    CodedInput(0, ("ffn_down",)),
    CodedInput(1, ("ssm_f",)),
)


def point(kind: Kind, k: float) -> TunedPoint:
    cost = (1.2 if kind == "single" else 1.1) * k**0.3
    figures = Figures(20 + 2 / k**2, 1 + 0.1 / k**2, 0.004, 0.5 / k**2, cost, 1.05 * cost, 0.8 - 0.1 * cost)
    return TunedPoint(kind, k, (k, 0.9 * k, 1.2 * k), figures, figures)


@pytest.fixture
def tuning() -> Tuning:
    points = [point(kind, k) for kind in ("single", "tuned") for k in (1.0, 2.0, 3.0, 4.0)]
    return Tuning(
        budget=0.02,
        text="tune.txt",
        held_out="held-out",
        tokens=2047,
        held_out_tokens=602,
        without=20.0,
        held_out_without=20.0,
        sites=SITES,
        sensitivities=(0.01, 0.02, 0.001),
        points=tuple(points),
        single=points[2],
        tuned=points[6],
        plan=SpikePlan(),
    )


def test_the_table_fits_a_terminal(tuning: Tuning) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(tuning_table(tuning))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "stored: each input's own k" in printed
    assert "3 everywhere" in printed and "tuned, 2.7 to 3.6" in printed
    assert printed.count("-8.3%") == 4  # spikes and additions, on both texts
    assert "mean over the curves: 8.3%, not tuned on 8.3%" in printed
    assert "…" not in printed and max(map(len, printed.splitlines())) <= 80


def test_files(tuning: Tuning, tmp_path: Path) -> None:
    files = save_tuning(tuning, tmp_path / "curve")
    assert [file.name for file in files] == ["tuning.json", "tuning.png", "tuning.svg"]
    document = json.loads(files[0].read_text())
    assert document["stored"] == "tuned" and len(document["curve"]) == 8
    assert document["sites"][2] == {"layer": 1, "projections": ["ssm_f"], "sensitivity": 0.001}
    assert files[1].read_bytes().startswith(b"\x89PNG")
    assert "k per input" in files[2].read_text() and "not tuned on" in files[2].read_text()


def test_a_folder_that_cannot_be_made(tuning: Tuning, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file: is a file"):
        save_tuning(tuning, tmp_path / "file")
