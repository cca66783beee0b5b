"""`sb-edge bench sparse`: a model with and without its layout, and the products alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sb_edge.bench.rows.ratios import Ratio
from sb_edge.bench.sparse.curve import SHARES, CurvePoint, SparseCurve, measure_curves
from sb_edge.bench.sparse.curve_plot import save_curves
from sb_edge.bench.sparse.sparse_speed import measure_sparse_speed
from sb_edge.cli import cli
from sb_edge.quant.quantize import quantize
from sb_edge.quant.sparse.layout import quantize_sparse
from sb_edge.quant.tuning import Text
from sb_edge.runtime.products import Products
from sb_edge.util.errors import InferenceError, SparseError

TEXT = "The keeper of the lighthouse climbed the stairs every night. " * 8


@pytest.fixture(scope="module")
def sparse(tiny: Path, texts: tuple[Text, Text], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sparse") / "sparse.gguf"
    quantize_sparse(
        tiny,
        target,
        lambda floats, finish: quantize(floats, target, "Q8_0", n_threads=1, finish=finish),
        text=texts[0],
        held_out=texts[1],
        budget=0.2,
        max_density=0.7,
        n_threads=1,
    )
    return target


@pytest.mark.engine
def test_a_model_with_and_without(sparse: Path, tiny: Path, tmp_path: Path) -> None:
    result = measure_sparse_speed(
        sparse, TEXT, name="text", n_prompt=8, n_gen=4, repetitions=3, max_tokens=32, n_threads=1
    )
    assert result.label == "tg4 @ d8" and result.tokens == 31
    assert len(result.dense.samples_ts) == len(result.sparse.samples_ts) == 3
    assert result.ratio.paired and result.ratio.low is not None
    assert result.counts.products > 0 and 0 < result.counts.silent_share < 1
    (tmp_path / "text.txt").write_text(TEXT)
    line = ["bench", "sparse", str(sparse), "-p", "8", "-n", "4", "-r", "2", "--tokens", "16", "-t", "1"]
    line += ["--text", str(tmp_path / "text.txt")]
    table = CliRunner().invoke(cli, line)
    assert table.exit_code == 0, table.output
    assert "sparse / dense" in table.stdout and "silent" in table.stdout
    document = json.loads(CliRunner().invoke(cli, [*line, "--json", "-"]).stdout)
    assert document["tokens"] == 15 and document["ratio"]["value"] > 0
    with pytest.raises(SparseError, match="has no sparse layout"):
        measure_sparse_speed(tiny, TEXT, name="text")
    with pytest.raises(InferenceError, match="too short"):
        measure_sparse_speed(sparse, "Too short.", name="text", n_prompt=64)


@pytest.mark.engine
def test_the_products_alone() -> None:
    """Each share's product is checked against the dense one before it is timed."""
    curves = measure_curves(((64, 96),), repetitions=2, n_threads=1, working_bytes=1 << 16)
    assert [curve.label for curve in curves] == ["Q4_0, 64 x 96", "Q8_0, 64 x 96"]
    for curve in curves:
        assert [point.silent for point in curve.points] == list(SHARES)
        assert all(point.ratio.value > 0 and point.sparse_ns > 0 for point in curve.points)


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_a_wrong_product_would_be_seen(kind: str) -> None:
    import numpy as np

    with Products(kind, 64, 96, 2, 1) as products:
        products.set_input(np.full(96, 2.0, np.float32))
        products.nanoseconds(is_sparse=False)
        dense = products.output(is_sparse=False)
        products.set_input(np.where(np.arange(96) < 32, np.float32(0.5), np.float32(2.0)))
        products.nanoseconds(is_sparse=True)
        assert np.abs(products.output(is_sparse=True) - dense).max() > 1


def test_the_plot(tmp_path: Path) -> None:
    points = tuple(CurvePoint(share, Ratio(1 / (1 - share), 0.9, 1.1, True), 10, 10) for share in SHARES)
    files = save_curves([SparseCurve("Q4_0", 64, 96, 1, points)], tmp_path / "plots")
    assert [file.name for file in files] == ["sparse.png", "sparse.svg"]


@pytest.mark.parametrize("line", [[], ["model.gguf", "--synthetic"], ["a.gguf", "-m", "b.gguf"]])
def test_bad_usage(line: list[str]) -> None:
    assert CliRunner().invoke(cli, ["bench", "sparse", *line]).exit_code == 2
