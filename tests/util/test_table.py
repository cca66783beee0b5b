"""Tables: the same columns in a terminal and in Markdown."""

from __future__ import annotations

import io

from rich.console import Console

from sb_edge.util.table import Column, Table


def printed(table: Table, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_terminal_and_markdown_show_the_same_cells() -> None:
    table = Table.of(
        [("1b", 37.5), ("a|b*", 2.0)],
        {"model": lambda record: record[0], "t/s": lambda record: f"{record[1]:.1f}"},
        title="Speed",
        notes=["* a note"],
    )
    assert printed(table) == ["Speed", "model   t/s", "1b     37.5", "a|b*    2.0", "* a note"]
    assert table.markdown().splitlines() == [
        "| model | t/s |", "| :--- | ---: |", "| 1b | 37.5 |", "| a\\|b\\* | 2.0 |", "", "\\* a note",
    ]  # fmt: skip


def test_only_wrapping_columns_break() -> None:
    table = Table("name", Column("words", right=False), "n", gap=1)
    table.add("long-name", "two words", "1")
    assert printed(table) == ["name      words     n", "long-name two words 1"]
    assert printed(table, width=18) == ["name   words     n", "long-n two words 1", "ame"]


def test_missing_cells_are_empty() -> None:
    table = Table("a", "b", "c")
    table.add("1")
    assert table.rows == [("1", "", "")]


def test_cells_are_text_not_markup() -> None:
    table = Table("[bold]x[/]")
    table.add("[red]y[/]", dim=True)
    assert printed(table) == ["[bold]x[/]", "[red]y[/]"]
