from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sb_edge.bench.rows.compare import first_against_others
from sb_edge.bench.rows.results import read_rows
from sb_edge.bench.rows.row import Row
from sb_edge.bench.speed.contexts import Contexts
from sb_edge.bench.speed.plan import BenchModel, DecodeSettings, PrefillSettings, examine, make_plan
from sb_edge.bench.speed.run import TimeBudget, run
from sb_edge.util.errors import SbEdgeError, StateError

pytestmark = pytest.mark.engine

FAST = PrefillSettings((0, 48), 1, n_prompt=24, repetitions=2)


def test_what_a_prompts_row_says(tiny_gguf: Path) -> None:
    empty, deep = run([BenchModel("tiny", tiny_gguf)], FAST)
    assert (empty.label, deep.label) == ("pp24", "pp24 @ d48")
    assert (deep.n_prompt, deep.n_gen, deep.n_depth, deep.fill) == (24, 0, 48, "real")
    assert deep.samples_ts[0] == pytest.approx(24e9 / deep.samples_ns[0])
    assert (empty.ttft_ns, empty.ttft_source) == (None, None)
    assert deep.ttft_ns and deep.ttft_source == "measured"
    assert (deep.bytes_per_token, deep.roofline_fraction) == (None, None)
    assert deep.machine is not None
    assert deep.machine.id == deep.machine_id
    assert deep.turns is None


def test_a_transformers_first_token_is_fitted_and_never_called_measured(tiny_llama: Path) -> None:
    settings = replace(FAST, depths=(64, 128), fill="synthetic", fit_beyond=64)
    rows = run([BenchModel("llama", tiny_llama)], settings)
    assert [row.n_depth for row in rows] == [0, 16, 32, 64, 128]
    assert [row.fill for row in rows] == ["real", *["synthetic"] * 3, "fitted"]
    assert [row.ttft_source for row in rows] == [None, *["fitted"] * 4]
    assert [row.fit_depths for row in rows[1:]] == [(0, 16), (0, 16, 32), (0, 16, 32, 64), (0, 16, 32, 64)]
    last = rows[-1]
    assert (last.samples_ns, last.samples_ts, last.rss_bytes, last.label) == ((), (), None, "pp24 @ d128")
    base, slope = last.fit_base_ns, last.fit_slope_ns
    assert base is not None and slope is not None
    assert last.ttft_ns == pytest.approx(128 * base + slope * 128**2 / 2, rel=1e-6)
    assert last.median_ts == pytest.approx(1e9 / (base + slope * (128 + 12)), rel=1e-6)
    assert last.kv_bytes == 256 * 2 * 2 * 2 * 32 * 2  # cells, layers, K and V, heads, head size, float16


def test_what_is_affordable_is_measured(tiny_llama: Path) -> None:
    assert [row.ttft_source for row in run([BenchModel("llama", tiny_llama)], FAST)] == [None, "measured"]


def test_models_at_a_depth_are_measured_in_turns(tiny_gguf: Path, tiny_llama: Path) -> None:
    models = [BenchModel("tiny", tiny_gguf), BenchModel("llama", tiny_llama)]
    rows = run(models, replace(FAST, depths=(0, 8)))
    turns = [row.turns for row in rows]
    assert turns[0] == turns[1] != turns[2] == turns[3]
    assert None not in turns
    assert all(row.rss_bytes and row.rss_bytes > row.model_size for row in rows)
    alone = run(models, replace(FAST, depths=(0,)), together=False)
    assert [row.turns for row in alone] == [None, None]


def test_a_baseline_keeps_a_flash_attention_of_its_own(tiny_gguf: Path, tiny_llama: Path) -> None:
    models = [BenchModel("tiny", tiny_gguf), BenchModel("llama", tiny_llama, flash_attn="off")]
    rows = run(models, replace(FAST, depths=(8,)))
    assert [row.flash_attn for row in rows] == [-1, 0]
    (one,) = first_against_others(rows)
    assert one.speed.paired


def test_a_spent_budget_leaves_out_the_rest_and_a_later_run_continues(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    output, model = tmp_path / "rows.jsonl", BenchModel("tiny", tiny_gguf)
    settings = replace(FAST, depths=(0, 24, 48, 72))
    budget = TimeBudget(3600)

    def stop_after_two(row: Row, done: int, _total: int) -> None:
        if done == 2:
            budget._end = 0.0

    first = run([model], settings, output=output, on_row=stop_after_two, budget=budget)
    assert [row.n_depth for row in first] == [0, 24]
    assert budget.left_out == ["tiny pp24 @ d48", "tiny pp24 @ d72"]
    folder = tmp_path / "rows.jsonl.contexts"
    (kept,) = folder.iterdir()
    assert kept.name.split("-")[1:] == ["24", f"{first[1].ttft_ns}{Contexts.SUFFIX}"]

    nothing = TimeBudget(0)
    assert run([model], settings, output=output, budget=nothing) == first
    assert nothing.left_out == budget.left_out

    rows = run([model], settings, output=output)
    assert rows[:2] == first
    assert rows == read_rows(output)
    times = [row.ttft_ns or 0 for row in rows]
    assert times == sorted(times)  # the prefill before the stop counts
    assert not folder.exists()


def test_kept_contexts_spare_decoding_the_prefill(tiny_gguf: Path, tmp_path: Path) -> None:
    output, model = tmp_path / "rows.jsonl", BenchModel("tiny", tiny_gguf)
    folder = tmp_path / "rows.jsonl.contexts"
    prompts = run([model], replace(FAST, depths=(24, 48)), output=output, keep_contexts=True)
    kept = sorted(folder.iterdir())
    assert [file.name.split("-")[1] for file in kept] == ["24", "48"]

    decode = DecodeSettings((48,), FAST.n_threads, n_gen=2, repetitions=1)
    deepest = kept[1].read_bytes()
    kept[1].write_bytes(deepest[:100])
    with pytest.raises(StateError):  # it is this file that decoding starts from
        run([model], decode, output=output, keep_contexts=True)
    kept[1].write_bytes(deepest)
    (row,) = run([model], decode, output=output, keep_contexts=True)
    assert (row.n_depth, row.fill) == (48, "real")
    assert sorted(folder.iterdir()) == kept
    assert read_rows(output) == [*prompts, row]

    run([model], replace(decode, repetitions=2), output=output)
    assert not folder.exists()


def test_an_impossible_budget_is_refused() -> None:
    with pytest.raises(SbEdgeError, match="cannot be negative"):
        TimeBudget(-1)


def test_spikingbrain_is_never_fitted(tiny_gguf: Path) -> None:
    settings = PrefillSettings((0, 64, 10**6), 1, fit_beyond=64)
    cases = make_plan([examine(BenchModel("tiny", tiny_gguf))], settings)
    assert [(case.n_depth, case.fill) for case in cases] == [(0, "real"), (64, "real"), (10**6, "real")]


def test_enough_depths_for_a_fit_are_added(tiny_llama: Path) -> None:
    subject = examine(BenchModel("llama", tiny_llama))

    def depths(*asked: int, **changes: int) -> list[int]:
        settings = PrefillSettings(asked, 1, **changes)  # type: ignore[arg-type]
        return [case.n_depth for case in make_plan([subject], settings)]

    assert depths(0, 4096) == [0, 4096]
    assert depths(65536) == [0, 16384, 32768, 65536]
    assert depths(0, 1024, 4096, 65536) == [0, 1024, 4096, 65536]
    assert depths(2**20, fit_beyond=65536) == [0, 16384, 32768, 65536, 2**20]
