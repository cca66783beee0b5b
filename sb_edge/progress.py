"""Progress on standard error, through rich; silent when standard error is not a terminal and short."""

from __future__ import annotations

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


@contextmanager
def progress_bar(description: str, total: float | None, *, unit: str = "") -> Iterator[Advance]:
    """Show a bar while the block runs; yield a function that advances it by a number of units.

    Args:
        description: what is going on, a few words.
        total: the units to go, None when unknown.
        unit: "bytes" shows sizes and a rate; anything else shows a count.
    """
    counts: list[ProgressColumn] = (
        [DownloadColumn(binary_units=True), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    )
    columns = [TextColumn("{task.description}"), BarColumn(), *counts, TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=stderr, transient=not stderr.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda units: progress.advance(task, units)
