"""docs/results and the README's chart, generated from committed rows: `make docs`."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from sb_edge.bench.report.curves import save_plot
from sb_edge.bench.rows.results import read_rows
from sb_edge.bench.rows.row import Row
from sb_edge.bench.rows.row_tables import results_table
from sb_edge.util.files import atomic_output

CHART = ("1b", "llama-1b")
"""Models of the chart: SpikingBrain's layers and Llama's in one shape."""


def machine_pages(files: Sequence[Path]) -> dict[str, str]:
    """A Markdown page for each machine that the rows were measured on, by file name.

    Raises:
        BenchmarkError: a file holds no rows.
    """
    machines: defaultdict[str, list[Row]] = defaultdict(list)
    for file in files:
        for row in read_rows(file):
            machines[row.machine_id].append(row)
    return {f"{name}.md": _page(rows) for name, rows in machines.items()}


def _page(rows: Sequence[Row]) -> str:
    first = rows[0]
    lines = [
        f"# {first.cpu_info}, {first.n_threads} threads",
        "",
        "Generated from bench/results by `make docs`. [Commands](../../bench/results/README.md).",
        "",
        results_table(rows).markdown(),
    ]
    return "\n".join(lines).rstrip() + "\n"


def decode_rows(files: Sequence[Path]) -> list[Row]:
    """The rows of the chart: the best decode speed at each depth, with float16 caches."""
    rows = [row for file in files for row in read_rows(file)]
    chosen = [row for row in rows if row.model in CHART and row.n_gen and row.type_k == "f16"]
    fastest = {}
    for row in sorted(chosen, key=lambda row: row.median_ts):
        fastest[row.model, row.n_depth] = row.model_copy(update={"flash_attn": -1})
    return [fastest[key] for key in sorted(fastest)]


def main() -> None:
    """Write the pages and the chart: FOLDER CHART ROWS..."""
    folder, chart, *files = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in machine_pages(files).items():
        with atomic_output(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    save_plot(decode_rows(files), chart)


if __name__ == "__main__":
    main()
