from __future__ import annotations

import csv
import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sb_edge.bench.rows.results import (
    SCALAR_FIELDS,
    ResultsFile,
    write_csv,
    write_markdown,
)
from sb_edge.bench.rows.row import Row, RowKey
from sb_edge.bench.rows.row_tables import label_with_marks
from sb_edge.util.errors import OutputError
from sb_edge.util.output import write_json

MakeRow = Callable[..., Row]

LLAMA_BENCH_FIELDS = [
    "build_commit", "cpu_info", "backends", "model_filename", "model_type", "model_size", "model_n_params",
    "n_batch", "n_ubatch", "n_threads", "type_k", "type_v", "flash_attn", "n_prompt", "n_gen", "n_depth",
    "test_time", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts",
]  # fmt: skip


def test_llama_benchs_fields_come_first(make_row: MakeRow) -> None:
    assert list(make_row().to_json())[: len(LLAMA_BENCH_FIELDS)] == LLAMA_BENCH_FIELDS


def test_rows_come_back_as_they_were_written(tmp_path: Path, make_row: MakeRow) -> None:
    shallow, deep = make_row(n_depth=0), make_row()
    path = tmp_path / "rows.jsonl"
    with ResultsFile(path) as results:
        results.append(shallow)
        results.append(deep)
    with ResultsFile(path) as results:
        assert list(results.finished.values()) == [shallow, deep]
        assert set(results.finished) == {shallow.key, deep.key}


@pytest.mark.parametrize("field", RowKey._fields)
def test_every_part_of_the_key_tells_rows_apart(make_row: MakeRow, field: str) -> None:
    row = make_row()
    old = getattr(row, field)
    changed = "synthetic" if field == "fill" else old + 1 if isinstance(old, int) else old + "x"
    assert row.model_copy(update={field: changed}).key != row.key


def test_name_and_time_do_not_tell_rows_apart(make_row: MakeRow) -> None:
    assert make_row(model="other", test_time="2027-01-01T00:00:00Z").key == make_row().key


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_torn_last_line_is_dropped(tmp_path: Path, make_row: MakeRow, share: float) -> None:
    path = tmp_path / "rows.jsonl"
    path.unlink(missing_ok=True)
    whole, torn = make_row(n_depth=0), make_row()
    with ResultsFile(path) as results:
        results.append(whole)
    line = json.dumps(torn.to_json(), separators=(",", ":")).encode()
    with path.open("ab") as file:
        file.write(line[: int(share * len(line))])
    with ResultsFile(path) as results:
        assert list(results.finished.values()) == [whole]
        results.append(torn)
    with ResultsFile(path) as results:
        assert list(results.finished.values()) == [whole, torn]
    assert path.read_bytes().count(b"\n") == 2


def test_a_complete_line_without_its_newline_is_kept(tmp_path: Path, make_row: MakeRow) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(make_row().to_json(), separators=(",", ":")))
    with ResultsFile(path) as results:
        results.append(make_row(n_depth=0))
    with ResultsFile(path) as results:
        assert len(results.finished) == 2


@pytest.mark.parametrize("content", ["notes", "notes\n", '{"a": 1}', "[]\n", "{}\n", "\x00\x01\n"])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(OutputError, match=r"notes\.txt: line 1: is not a benchmark row"):
        ResultsFile(path)
    assert path.read_text() == content


def test_a_damaged_line_is_named(tmp_path: Path, make_row: MakeRow) -> None:
    path = tmp_path / "rows.jsonl"
    damaged = make_row().to_json() | {"avg_ts": "fast"}
    path.write_text("".join(json.dumps(row) + "\n" for row in (make_row(n_depth=0).to_json(), damaged)))
    with pytest.raises(OutputError, match=r"line 2: .*avg_ts"):
        ResultsFile(path)


def test_two_runs_cannot_write_the_same_file(tmp_path: Path, make_row: MakeRow) -> None:
    path = tmp_path / "rows.jsonl"
    with ResultsFile(path) as first:
        with pytest.raises(OutputError, match="another benchmark is writing"):
            ResultsFile(path)
        first.append(make_row())
    with ResultsFile(path) as second:
        assert len(second.finished) == 1


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere/rows\.jsonl: cannot be opened: No such file"):
        ResultsFile(tmp_path / "nowhere" / "rows.jsonl")


def test_a_full_device_leaves_the_rows_before(tmp_path: Path, make_row: MakeRow) -> None:
    path = tmp_path / "rows.jsonl"
    with ResultsFile(path) as results:
        results.append(make_row(n_depth=0))
        before = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
        try:
            with pytest.raises(OutputError, match=r"rows\.jsonl: cannot be written"):
                results.append(make_row())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        results.append(make_row())
    with ResultsFile(path) as results:
        assert len(results.finished) == 2


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be opened"):
        ResultsFile(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_csv_has_a_column_for_each_scalar(tmp_path: Path, rows: list[Row]) -> None:
    path = tmp_path / "rows.csv"
    write_csv(rows, path)
    with path.open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == len(rows)
    assert tuple(table[0]) == SCALAR_FIELDS
    assert "samples_ns" not in table[0]
    assert [float(line["median_ts"]) for line in table] == [row.median_ts for row in rows]


def test_json_is_an_array_of_rows(tmp_path: Path, rows: list[Row]) -> None:
    path = tmp_path / "rows.json"
    write_json(path, rows)
    assert [Row.model_validate_json(json.dumps(row)) for row in json.loads(path.read_text())] == rows


def test_markdown_has_a_line_for_each_row(tmp_path: Path, make_row: MakeRow) -> None:
    path = tmp_path / "rows.md"
    write_markdown([make_row(model="a|b"), make_row(fill="synthetic")], path)
    lines = path.read_text().splitlines()
    assert lines[0].startswith("| model | test |")
    assert lines[1] == "| :--- | :--- | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2].startswith("| a\\|b | tg32 @ d4096 | 10.00 ± ")
    assert "tg32 @ d4096\\* " in lines[3]
    assert any("synthetic context fill" in line for line in lines[4:])


def test_positions_beyond_the_models_are_marked(make_row: MakeRow) -> None:
    assert label_with_marks(make_row(n_depth=131072 - 32)) == "tg32 @ d4096"
    assert label_with_marks(make_row(n_depth=131072 - 31)) == "tg32 @ d4096†"
