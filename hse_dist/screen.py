"""Tables for people, on standard error: results go to standard output, as JSON.

In: texts. Out: nothing; the table is shown. Cells are texts, not markup: an item may be called `[bold]`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Cell = str | tuple[str, str]
"""A text, or a text and its style."""


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard error; the first column is text, the others are numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table)


def show_texts(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """A table on standard error whose cells are sentences: the last column takes what room there is."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(Text(column), no_wrap=index < len(columns) - 1)
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else Text(*cell) for cell in row))
    _console().print(table)


def _console() -> Console:
    from rich.console import Console

    # a log has no width of its own: there the table takes what it needs
    return Console(stderr=True) if sys.stderr.isatty() else Console(stderr=True, width=1000)
