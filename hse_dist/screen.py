"""Tables for people, on standard error: results go to standard output, as JSON.

In: texts. Out: nothing; the table is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard error; the first column is text, the others are numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # a log has no width of its own: there the table takes what it needs
    console = Console(stderr=True) if sys.stderr.isatty() else Console(stderr=True, width=1000)
    console.print(table)
