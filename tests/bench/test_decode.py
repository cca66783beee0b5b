from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from sb_edge.bench.rows.row import Row
from sb_edge.bench.selftest.fill_check import validate_fill
from sb_edge.bench.speed.context_fill import CHUNK, synthetic_fill
from sb_edge.bench.speed.contexts import Contexts, open_session, prefill, rewinder
from sb_edge.bench.speed.plan import BenchModel, DecodeSettings, examine, make_plan
from sb_edge.bench.speed.run import run
from sb_edge.engine.machine import Machine
from sb_edge.gguf.reader import read_header
from sb_edge.memory.traffic import token_traffic
from sb_edge.runtime.session import Model, Session
from sb_edge.util.errors import InferenceError, OutOfMemoryForecast, SbEdgeError

pytestmark = pytest.mark.engine

FAST = DecodeSettings((0, 40), 1, n_gen=3, repetitions=2)


def ignore(_units: float) -> None:
    """Progress that nobody watches."""


def test_a_row_for_every_model_and_depth(tiny_gguf: Path, tiny_llama: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    models = [BenchModel("tiny", tiny_gguf), BenchModel("llama", tiny_llama)]
    rows = run(models, FAST, on_row=lambda row, done, total: seen.append((row.label, done, total)))
    assert [(row.n_depth, row.model) for row in rows] == [
        (0, "tiny"),
        (0, "llama"),
        (40, "tiny"),
        (40, "llama"),
    ]
    assert seen == [("tg3", 1, 4), ("tg3", 2, 4), ("tg3 @ d40", 3, 4), ("tg3 @ d40", 4, 4)]


def test_what_a_row_says(tiny_gguf: Path) -> None:
    row = run([BenchModel("tiny", tiny_gguf)], FAST)[1]
    assert len(row.samples_ns) == len(row.samples_ts) == row.repetitions == 2
    assert row.median_ts == pytest.approx(sum(row.samples_ts) / 2)
    assert row.model_filename == tiny_gguf.name
    assert row.model_type.startswith("spikingbrain")
    assert row.fill == "real"
    assert row.state_bytes > 0
    assert row.kv_bytes > 0
    assert row.rss_bytes > row.model_size
    # tokens 1, 2, 3 after 40 attend to 41, 42, 43 positions
    assert row.bytes_per_token == token_traffic(read_header(tiny_gguf), 42).total
    assert row.roofline_fraction == pytest.approx(row.bytes_per_token * row.median_ts / row.read_bandwidth)


def test_finished_rows_are_not_measured_again(tiny_gguf: Path, tmp_path: Path) -> None:
    output, model = tmp_path / "rows.jsonl", BenchModel("tiny", tiny_gguf)
    shallow = run([model], replace(FAST, depths=(0,)), output=output)
    measured: list[int] = []
    rows = run([model], FAST, output=output, on_row=lambda row, *_: measured.append(row.n_depth))
    assert measured == [40]
    assert rows[0] == shallow[0]
    assert len(output.read_text().splitlines()) == 2
    assert run([model], FAST, output=output) == rows


def test_the_same_weights_under_two_names_are_measured_once(tiny_gguf: Path) -> None:
    measured: list[Row] = []
    models = [BenchModel("one", tiny_gguf), BenchModel("two", tiny_gguf)]
    rows = run(models, replace(FAST, depths=(0,)), on_row=lambda row, *_: measured.append(row))
    assert [row.model for row in rows] == ["one", "two"]
    assert len(measured) == 1


def test_what_will_not_fit_is_refused_before_anything_starts(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    started: list[Row] = []
    with pytest.raises(OutOfMemoryForecast, match="will not fit in memory"):
        run(
            [BenchModel("llama", tiny_llama)],
            replace(FAST, depths=(0, 2**40)),
            output=output,
            on_row=lambda row, *_: started.append(row),
        )
    assert started == []
    assert output.read_bytes() == b""


def test_continuing_from_a_shallower_depth_gives_the_same_context(
    tiny_gguf: Path, tmp_path: Path, machine: Machine
) -> None:
    """Also in another process: the file describes its content."""
    folder, before = tmp_path / "contexts", 0
    subject = examine(BenchModel("tiny", tiny_gguf))
    shallow, deep = make_plan([subject], replace(FAST, depths=(30, 80), cache_types=(("f32", "f32"),)))
    tokens = np.random.default_rng(0).integers(256, size=80)
    logits = []
    for first in (None, shallow):
        with Contexts(machine, folder) as contexts, Model(tiny_gguf) as model:
            if first is not None:
                with open_session(model, first) as session:
                    before = prefill(session, first, tokens[:30], contexts)
            with Contexts(machine, folder) as contexts, open_session(model, deep) as session:
                assert prefill(session, deep, tokens, contexts) > before
                assert session.position() == 80
                logits.append(session.evaluate([7]))
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [0, 40])
def test_every_repetition_starts_at_the_depth(
    tiny_gguf: Path, tiny_llama: Path, machine: Machine, depth: int
) -> None:
    for path in (tiny_gguf, tiny_llama):
        (case,) = make_plan([examine(BenchModel("m", path))], replace(FAST, depths=(depth,)))
        with (
            Contexts(machine) as contexts,
            Model(path) as model,
            open_session(model, case) as session,
        ):
            prefill(session, case, np.arange(depth), contexts)
            rewind = rewinder(session, case)
            logits = []
            for _ in range(3):
                rewind()
                assert session.position() == depth
                logits.append(session.evaluate([1, 2, 3]))
            np.testing.assert_array_equal(logits[0], logits[1])
            np.testing.assert_array_equal(logits[0], logits[2])


@pytest.mark.parametrize("depth", [100, CHUNK, 3 * CHUNK + 17])
def test_a_synthetic_fill_reaches_the_depth_exactly(tiny_llama: Path, depth: int) -> None:
    done: list[float] = []
    with Model(tiny_llama) as model, Session(model, n_ctx=4096, n_seq_max=2, kv_unified=True) as session:
        synthetic_fill(session, depth, [i % 256 for i in range(CHUNK)], done.append)
        assert session.position() == depth
        assert session.position(1) == 0
        assert sum(done) == depth
        assert np.isfinite(session.evaluate([1])).all()
        assert session.position() == depth + 1


def test_a_synthetic_fill_attends_to_the_copies(tiny_llama: Path) -> None:
    """One chunk repeated equals a real prefill in the first layer's keys; deeper layers saw another past."""
    tokens = [i % 256 for i in range(CHUNK)]
    with Model(tiny_llama) as model:
        with Session(model, n_ctx=4096, n_seq_max=2, kv_unified=True) as session:
            synthetic_fill(session, 2 * CHUNK, tokens, ignore)
            synthetic = session.evaluate([1])
        with Session(model, n_ctx=4096) as session:
            session.evaluate(tokens)
            one = session.evaluate([1])
        with Session(model, n_ctx=4096) as session:
            session.evaluate(tokens + tokens)
            real = session.evaluate([1])
    assert np.abs(synthetic - real).max() < np.abs(one - real).max()


def test_a_recurrent_model_cannot_be_filled_synthetically(tiny_gguf: Path) -> None:
    with (
        Model(tiny_gguf) as model,
        Session(model, n_ctx=512) as session,
        pytest.raises(InferenceError, match="does not support synthetic context fill"),
    ):
        synthetic_fill(session, 64, [1, 2, 3], ignore)


def test_a_synthetic_fill_starts_from_nothing(tiny_llama: Path) -> None:
    with Model(tiny_llama) as model, Session(model, n_ctx=512, n_seq_max=2, kv_unified=True) as session:
        session.evaluate([1])
        with pytest.raises(InferenceError, match="needs an empty context"):
            synthetic_fill(session, 64, [1, 2, 3], ignore)


def test_fill_check_compares_both(tiny_llama: Path) -> None:
    (check,) = validate_fill([BenchModel("llama", tiny_llama)], replace(FAST, depths=(600,)))
    assert (check.real.fill, check.synthetic.fill) == ("real", "synthetic")
    assert check.ratio == pytest.approx(check.synthetic.median_ts / check.real.median_ts)
    assert check.to_json()["ratio"] == check.ratio


def test_fill_check_needs_something_to_compare(tiny_gguf: Path) -> None:
    with pytest.raises(SbEdgeError, match="has no synthetic context fill"):
        validate_fill([BenchModel("tiny", tiny_gguf)], replace(FAST, depths=(8,)))


def test_no_file_stays_open(tiny_gguf: Path) -> None:
    run([BenchModel("tiny", tiny_gguf)], FAST)
    before = psutil.Process().num_fds()
    run([BenchModel("tiny", tiny_gguf)], FAST)
    assert psutil.Process().num_fds() <= before
