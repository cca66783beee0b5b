"""Progress on standard error: a rich bar on a terminal, otherwise a line at intervals."""

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


def note(text: str) -> None:
    """Print a line on standard error, as it is."""
    stderr.print(text, highlight=False, markup=False, soft_wrap=True)


Advance = Callable[[float], None]

LINE_INTERVAL = 20.0
"""Seconds between lines when standard error is not a terminal."""


@contextmanager
def progress_bar(
    description: str, total: float | None, *, unit: str = "", live: bool = True
) -> Iterator[Advance]:
    """Show a bar while the block runs; yield a function that advances it by a number of units.

    Args:
        description: the activity, in a few words.
        total: number of units; None if unknown.
        unit: "bytes" shows sizes and a rate; any other value shows a count.
        live: False redraws the bar only when it advances, so that drawing does not disturb timed work.
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
    """Print one line every LINE_INTERVAL seconds; nothing for short work."""
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
            note(f"{description}: {count(done)}{of}")

    return advance
