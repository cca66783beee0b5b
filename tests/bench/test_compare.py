from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from sb_edge.bench.rows.compare import (
    compare_rows,
    comparison_table,
    first_against_others,
    select_model,
)
from sb_edge.bench.rows.row import Row
from sb_edge.util.errors import SbEdgeError

MakeRow = Callable[..., Row]


def timed(make_row: MakeRow, speeds: tuple[float, ...], **changes: Any) -> Row:
    return make_row(samples_ts=speeds, median_ts=sorted(speeds)[len(speeds) // 2], **changes)


@pytest.fixture
def pair(make_row: MakeRow) -> tuple[Row, Row]:
    return (
        timed(make_row, (20.0, 10.0, 40.0), model="1b", turns="a1"),
        timed(make_row, (10.0, 5.0, 20.0), model="llama-1b", turns="a1"),
    )


def shown(comparisons: Any) -> str:
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(comparison_table(comparisons))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_rows_measured_in_turns_are_compared_by_pairs(pair: tuple[Row, Row]) -> None:
    (one,) = compare_rows([pair[0]], [pair[1]])
    assert one.speed.paired
    assert (one.speed.value, one.speed.low, one.speed.high) == (2.0, 2.0, 2.0)
    document = one.to_json()
    assert (document["a"]["model"], document["b"]["model"], document["ratio"]) == ("1b", "llama-1b", 2.0)
    assert (document["paired"], document["fitted"], document["ttft_ratio"]) == (True, False, None)


def test_rows_of_different_runs_are_compared_by_medians(pair: tuple[Row, Row]) -> None:
    apart = pair[1].model_copy(update={"turns": "b2"})
    (one,) = compare_rows([pair[0]], [apart])
    assert not one.speed.paired
    assert one.speed.value == 2.0
    assert one.speed.low is not None and one.speed.low < 2.0
    assert "2.000^" in shown([one])


def test_the_same_model_of_two_files_is_matched_by_label(make_row: MakeRow) -> None:
    depths = [(0, "tg32"), (4096, "tg32 @ d4096")]
    before = [make_row(n_depth=depth, label=label, engine_key="1") for depth, label in depths]
    after = [timed(make_row, (20.0, 20.0), n_depth=0, label="tg32", engine_key="2")]
    (one,) = compare_rows(after, before)
    assert one.ours.label == one.theirs.label == "tg32"
    assert one.speed.value == pytest.approx(2.0)


def test_several_models_are_matched_by_name(pair: tuple[Row, Row]) -> None:
    found = compare_rows(pair, pair[::-1])
    assert [(one.ours.model, one.theirs.model) for one in found] == [
        ("llama-1b", "llama-1b"),
        ("1b", "1b"),
    ]
    assert {one.speed.value for one in found} == {1.0}


def test_every_setting_of_a_baseline_is_compared(pair: tuple[Row, Row]) -> None:
    quantized = pair[1].model_copy(update={"type_k": "q8_0", "type_v": "q8_0", "turns": None})
    found = compare_rows([pair[0]], [pair[1], quantized])
    assert [one.theirs.type_k for one in found] == ["f16", "q8_0"]
    text = shown(found)
    assert "llama-1b q8_0" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_another_flash_attention_is_compared_with_the_same_cache(pair: tuple[Row, Row]) -> None:
    quantized = {"type_k": "q8_0", "type_v": "q8_0"}
    ours = [pair[0], pair[0].model_copy(update=quantized)]
    theirs = [
        row.model_copy(update={"flash_attn": 0}) for row in (pair[1], pair[1].model_copy(update=quantized))
    ]
    found = compare_rows(ours, theirs)
    assert [(one.ours.type_k, one.theirs.type_k) for one in found] == [("f16", "f16"), ("q8_0", "q8_0")]


def test_what_was_fitted_is_marked(make_row: MakeRow) -> None:
    common = {"n_prompt": 512, "n_gen": 0, "label": "pp512 @ d4096"}
    ours = timed(make_row, (8.0, 8.0), model="1b", ttft_ns=10**9, ttft_source="measured", **common)
    theirs = make_row(
        model="llama-1b", samples_ts=(), samples_ns=(), median_ts=4.0, fill="fitted", ttft_ns=3 * 10**9,
        ttft_source="fitted", rss_bytes=None, **common,
    )  # fmt: skip
    (one,) = compare_rows([ours], [theirs])
    assert (one.speed.value, one.speed.low, one.ttft) == (2.0, None, 3.0)
    assert one.speed_is_fitted and one.ttft_is_fitted
    text = shown([one])
    assert "2.000‡" in text
    assert "3.000‡" in text
    assert "fitted, not measured" in text


def test_nothing_in_common_is_said(pair: tuple[Row, Row]) -> None:
    with pytest.raises(SbEdgeError, match="no row of A has a counterpart in B"):
        compare_rows([pair[0]], [pair[1].model_copy(update={"n_threads": 4})])
    with pytest.raises(SbEdgeError, match=r"no rows of this model \(found gpt, expected 1b, llama-1b\)"):
        select_model(pair, "gpt")


def test_the_first_model_is_compared_with_the_others(pair: tuple[Row, Row]) -> None:
    assert [one.theirs.model for one in first_against_others(pair)] == ["llama-1b"]
    assert first_against_others(pair[:1]) == []
    assert first_against_others([]) == []
