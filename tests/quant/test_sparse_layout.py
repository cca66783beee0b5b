"""`sb-edge sparsify`: choices, output and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import sb_edge

from sb_edge.arch.sparse_plan import check_sparse, row_name
from sb_edge.evaluate.perplexity import token_losses
from sb_edge.gguf.reader import read_header
from sb_edge.gguf.values import tensor_values
from sb_edge.quant.quantize import quantize
from sb_edge.quant.sparse.layout import SparseLayout, quantize_sparse
from sb_edge.quant.tuning import Text
from sb_edge.runtime.session import Model, Session
from sb_edge.runtime.sparse_counters import count_products
from sb_edge.util.errors import GgufError, OutputError, SparseError, SpikeError
from sb_edge.util.logits import nmse
from sb_edge.util.tolerances import ENGINE_F32

pytestmark = pytest.mark.engine
BUDGET, MAX_DENSITY = 0.05, 0.7


def make(
    source: Path, target: Path, texts: tuple[Text, Text], qtype: str = "Q8_0", **options
) -> SparseLayout:
    """A file with a layout, by one thread."""
    settings = {"budget": BUDGET, "max_density": MAX_DENSITY, **options}
    allow = settings.get("allow_requantize", False)
    return quantize_sparse(
        source,
        target,
        lambda floats, finish: quantize(
            floats, target, qtype, n_threads=1, finish=finish, allow_requantize=allow
        ),
        text=texts[0],
        held_out=texts[1],
        n_threads=1,
        **settings,
    )


@pytest.fixture(scope="module")
def made(
    tiny: Path, texts: tuple[Text, Text], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, SparseLayout]:
    target = tmp_path_factory.mktemp("layout") / "sparse.gguf"
    layout = make(tiny, target, texts)
    assert list(target.parent.iterdir()) == [target]
    return target, layout


def test_the_budget_is_kept_by_what_was_written(
    made: tuple[Path, SparseLayout], texts: tuple[Text, Text]
) -> None:
    path, layout = made
    with Model(path, sparse=False) as dense, Model(path) as sparse, count_products() as counts:
        losses = [token_losses(model, texts[0].tokens, n_batch=1, n_threads=1) for model in (dense, sparse)]
        counted = counts()
    ratio = np.exp(losses[1].mean() - losses[0].mean())
    assert ratio == pytest.approx(layout.tuning.chosen.ratio, rel=1e-4) and ratio <= 1 + BUDGET
    plan = check_sparse(read_header(path))
    assert plan is not None
    assert [(each.layer, each.name) for each in plan.projections] == [
        (site.layer, site.projection) for site in layout.sites
    ]
    assert counted.products == len(layout.sites) * len(texts[0].tokens)
    assert 0 < counted.silent_share < 1
    assert all(site.silent > 1 - MAX_DENSITY and site.mean_zone > 0 for site in layout.sites)
    assert layout.added_bytes == sum(each.columns.nbytes + each.zones.nbytes for each in plan.projections)


def test_columns_are_made_of_the_float_weights(made: tuple[Path, SparseLayout], tiny: Path) -> None:
    path, layout = made
    rows = {tensor.name: tensor for tensor in read_header(tiny).tensors}
    plan = check_sparse(read_header(path))
    assert plan is not None
    for each in plan.projections:
        weight, columns = tensor_values(rows[row_name(each.layer, each.name)]), tensor_values(each.columns)
        if each.name in ("ffn_gate", "ffn_up"):  # neurons have moved: outputs of these, inputs of ffn_down
            weight, columns = np.sort(weight, axis=0), np.sort(columns, axis=1)
        if each.name == "ffn_down":
            weight, columns = np.sort(weight, axis=1), np.sort(columns, axis=0)
        assert nmse(weight.T, columns) < 1e-4
    assert layout.reordered == (0, 1, 2, 3)[: len(layout.reordered)]


def test_without_the_layout_it_is_the_plain_model(
    made: tuple[Path, SparseLayout], tiny: Path, tmp_path: Path, texts: tuple[Text, Text]
) -> None:
    """The same weights in another order of neurons: prompts, and decoding with sparse=False."""
    tokens = texts[0].tokens[:40]
    kept = tmp_path / "kept.gguf"
    make(tiny, kept, texts, reorder=False)
    quantize(tiny, tmp_path / "plain.gguf", "Q8_0", n_threads=1)
    found = []
    for path, is_sparse in ((tmp_path / "plain.gguf", True), (kept, True), (kept, False)):
        with Model(path, sparse=is_sparse) as model, Session(model, n_ctx=64, n_threads=1) as session:
            found.append(session.evaluate(tokens, all_logits=True))
            if not is_sparse:
                session.clear()
                found.append(np.stack([session.evaluate([token]) for token in tokens]))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    with Model(tmp_path / "plain.gguf") as model, Session(model, n_ctx=64, n_threads=1) as session:
        decoded = np.stack([session.evaluate([token]) for token in tokens])
    assert nmse(decoded, found[3]) <= ENGINE_F32.nmse


def test_what_cannot_have_a_layout_is_refused(
    tiny: Path, golden_gguf: Path, texts: tuple[Text, Text], made: tuple[Path, SparseLayout], tmp_path: Path
) -> None:
    target = tmp_path / "out.gguf"
    for options, message in (
        ({"budget": 0.0}, "budget: is impossible"),
        ({"max_density": 1.5}, "max_density: is impossible"),
        ({"budget": 1e-9}, "no dead zones keep a budget"),
    ):
        with pytest.raises(SparseError, match=message):
            make(tiny, target, texts, **options)
    with pytest.raises(SpikeError, match="too short"):
        make(tiny, target, (Text("short", (1, 2)), texts[1]))
    quantize(tiny, tmp_path / "q8.gguf", "Q8_0", n_threads=1)
    with pytest.raises(SparseError, match="floating-point weights"):
        make(tmp_path / "q8.gguf", target, texts)
    with pytest.raises(SparseError, match="has a sparse layout already"):
        make(made[0], target, texts)
    with pytest.raises(OutputError, match="is the input"):
        make(tiny, tiny, texts)
    with pytest.raises(OutputError, match="does not exist"):
        make(tiny, tmp_path / "absent" / "out.gguf", texts)
    assert [path.name for path in tmp_path.iterdir()] == ["q8.gguf"]
    with pytest.raises(GgufError):
        make(tmp_path / "absent.gguf", target, texts)


def test_a_quantized_source_where_it_is_allowed(tiny: Path, texts: tuple[Text, Text], tmp_path: Path) -> None:
    quantize(tiny, tmp_path / "q8.gguf", "Q8_0", n_threads=1)
    layout = make(tmp_path / "q8.gguf", tmp_path / "out.gguf", texts, qtype="COPY", allow_requantize=True)
    assert layout.sites and layout.reordered == ()


def test_command_line(tiny: Path, tmp_path: Path) -> None:
    text, target = tmp_path / "text.txt", tmp_path / "out.gguf"
    text.write_text("The keeper of the lighthouse climbed the stairs every night. " * 8)
    line = ["sparsify", tiny, target, "--type", "Q8_0", "-t", "1"]
    done = sb_edge(*line, "--text", text, "--tokens", 96, "--budget", 0.2, "--json", "-")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["perplexity_ratio"] <= 1.2 and document["tokens"] == 95
    assert document["sites"] and document["held_out"] == "held-out"
    shown = sb_edge("inspect", target).stdout
    assert "sparse layout" in shown and "mean dead zone" in shown
    for arguments, message in (
        (line, "Missing option '--text'"),
        ([*line, "--text", text, "--type", "Q9"], "unknown type 'Q9'"),
        ([*line, "--text", text, "--max-density", "0"], "not in the range"),
    ):
        refused = sb_edge(*arguments)
        assert refused.returncode == 2 and message in " ".join(refused.stderr.split())
