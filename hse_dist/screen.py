"""What people see, on standard error: tables, bars and the log share one console. Results go to standard output.

In: texts. Out: nothing; the table or the bar is shown. Cells are texts, not markup: an item may be called `[bold]`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
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
    console().print(table)


def show_texts(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """A table on standard error whose cells are sentences: the last column takes what room there is."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(Text(column), no_wrap=index < len(columns) - 1)
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else Text(*cell) for cell in row))
    console().print(table)


@contextmanager
def bar(job: str) -> Iterator[Callable[[float | None, str], None] | None]:
    """A bar for the block, below what is printed meanwhile; it goes with the block.

    Yields:
        What sets its share (None: unknown) and its words; or None, where there is no terminal that could show it.
    """
    if not sys.stderr.isatty() or console().is_dumb_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[words]}", markup=False),
    )
    with Progress(*columns, console=console(), transient=True, auto_refresh=False) as progress:
        task = progress.add_task(job, total=None, words="")

        def show(share: float | None, words: str) -> None:
            # without a total the bar runs back and forth
            progress.update(task, completed=share or 0.0, total=None if share is None else 1.0, words=words)
            progress.refresh()

        yield show


def console() -> Console:
    """Of standard error."""
    from rich.console import Console

    # a log has no width of its own: there a table takes what it needs
    return _terminal() if sys.stderr.isatty() else Console(stderr=True, width=1000)


def show_cursor() -> None:
    """Bring the cursor back, before a process ends so hard that a bar cannot."""
    if sys.stderr.isatty():
        console().show_cursor(True)


@cache
def _terminal() -> Console:
    """One for all: a console knows of its own bar only, and would print into another one's."""
    from rich.console import Console

    return Console(stderr=True)
