"""Progress on standard error: a bar through rich on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

stderr = Console(stderr=True)

Advance = Callable[[float], None]

LINE_INTERVAL = 20.0
"""Seconds between two lines when standard error is not a terminal."""


@contextmanager
def progress_bar(
    description: str, total: float | None, *, unit: str = "", live: bool = True
) -> Iterator[Advance]:
    """Show a bar while the block runs; yield a function that advances it by a number of units.

    Args:
        description: what is going on, a few words.
        total: the units to go, None when unknown.
        unit: "bytes" shows sizes and a rate; anything else shows a count.
        live: False draws the bar only when it advances, for work that is timed in between.
    """
    counts: list[ProgressColumn] = (
        [DownloadColumn(binary_units=True), TransferSpeedColumn()]
        if unit == "bytes"
        else [MofNCompleteColumn()]
    )
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        *counts,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    if not stderr.is_terminal:
        yield _occasional_lines(description, total, unit)
        return
    with Progress(*columns, console=stderr, auto_refresh=live) as progress:
        task = progress.add_task(description, total=total)

        def advance(units: float) -> None:
            progress.advance(task, units)
            if not live:
                progress.refresh()

        yield advance


def _occasional_lines(description: str, total: float | None, unit: str) -> Advance:
    """What a log file gets: nothing for short work, else one line each LINE_INTERVAL seconds."""
    done = 0.0
    shown = time.monotonic()

    def count(units: float) -> str:
        return f"{units / 2**20:.0f} MiB" if unit == "bytes" else f"{units:.0f}"

    def advance(units: float) -> None:
        nonlocal done, shown
        done += units
        if time.monotonic() - shown >= LINE_INTERVAL:
            shown = time.monotonic()
            of = "" if total is None else f" of {count(total)}"
            stderr.print(f"{description}: {count(done)}{of}", highlight=False, markup=False)

    return advance
