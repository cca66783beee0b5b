"""Tables for a terminal of 80 columns and for Markdown, from one description of the columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

Record = TypeVar("Record")


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        heading: Text above the column.
        right: Align to the right, as numbers are.
        wrap: Break long cells; other columns keep their width.
        min_width: Smallest width in a terminal, characters.
    """

    heading: str
    right: bool = True
    wrap: bool = False
    min_width: int | None = None


class Table:
    """A table with an optional title and notes; print it with rich, or write `markdown()`.

    >>> table = Table("model", "t/s", title="Decode speed")
    >>> table.add("1b", "37.50")
    >>> print(table.markdown(), end="")
    | model | t/s |
    | :--- | ---: |
    | 1b | 37.50 |

    A string stands for a column: the first is aligned to the left and wraps, the others hold numbers.

    Args:
        columns: Columns or their headings.
        title: Text above the table (terminal only).
        notes: Sentences below the table.
        gap: Blanks between two columns in a terminal.
    """

    def __init__(
        self, *columns: Column | str, title: str = "", notes: Iterable[str] = (), gap: int = 2
    ) -> None:
        self.columns = tuple(
            Column(column, right=number > 0, wrap=number == 0) if isinstance(column, str) else column
            for number, column in enumerate(columns)
        )
        self.title, self.notes, self.gap = title, tuple(notes), gap
        self.rows: list[tuple[str, ...]] = []
        self._styles: list[str | None] = []

    @classmethod
    def of(
        cls,
        records: Iterable[Record],
        columns: Mapping[Column | str, Callable[[Record], str]],
        *,
        title: str = "",
        notes: Iterable[str] = (),
    ) -> Table:
        """A table with one row per record.

        Args:
            records: What the rows describe.
            columns: For each column the function that gives a record's cell.
            title, notes: As for the constructor.
        """
        table = cls(*columns, title=title, notes=notes)
        for record in records:
            table.add(*(text(record) for text in columns.values()))
        return table

    def add(self, *cells: str, dim: bool = False, red: bool = False) -> None:
        """Add a row, in a terminal dimmed or red; missing cells at the end are empty."""
        self._styles.append("dim" if dim else "red" if red else None)
        self.rows.append((*cells, *[""] * (len(self.columns) - len(cells))))

    def __rich__(self) -> RenderableType:
        """Title, table and notes for a terminal."""
        table = RichTable(box=None, padding=(0, self.gap, 0, 0), pad_edge=False, header_style="bold")
        for column in self.columns:
            table.add_column(
                Text(column.heading),
                justify="right" if column.right else "left",
                no_wrap=not column.wrap,
                overflow="fold" if column.wrap else "ellipsis",
                min_width=column.min_width,
            )
        for cells, style in zip(self.rows, self._styles, strict=True):
            table.add_row(*map(Text, cells), style=style)
        above = [Text(self.title)] if self.title else []
        return Group(*above, table, *(Text(note, style="dim") for note in self.notes))

    def markdown(self) -> str:
        """GitHub-flavoured Markdown, notes below the table; ends with a line feed."""
        lines = [
            _markdown_line([column.heading for column in self.columns]),
            _markdown_line(["---:" if column.right else ":---" for column in self.columns]),
            *(_markdown_line([_escaped(cell) for cell in cells]) for cells in self.rows),
        ]
        return "\n".join([*lines, "", *(_escaped(note) + "  " for note in self.notes)]).rstrip() + "\n"


def grid(facts: Iterable[tuple[str, str]]) -> RichTable:
    """Labels and values for a terminal; long values are folded."""
    table = RichTable.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in facts:
        table.add_row(Text(label), Text(value))
    return table


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
