"""The log of a job, in which its result is the last line.

In: the log, in pieces that end anywhere, and from its beginning again when a connection was lost. Out: each line once;
and the job's result, which is held back until it is certain that nothing follows it. Ray writes what a job prints on
standard output and on standard error into one file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


class LogLines:
    """Takes pieces, and shows lines.

    Args:
        show: takes a line, without its end.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._seen = self._at = 0
        self._rest, self._held = "", ""
        self.lacks_package = False
        """Whether the job found no hse_dist."""

    def again(self) -> None:
        """The pieces that follow begin at the log's beginning."""
        self._at = 0

    def take(self, piece: str) -> None:
        """Show the lines that are complete."""
        new = piece[max(self._seen - self._at, 0) :]
        self._at += len(piece)
        self._seen = max(self._seen, self._at)
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            self._line(line)

    def _line(self, line: str) -> None:
        if self._held:
            self._show(self._held)
            self._held = ""
        if _object(line) is not None:
            self._held = line
            return
        self.lacks_package |= line.rstrip().endswith(("No module named 'hse_dist'", "No module named hse_dist"))
        self._show(line)

    def end(self) -> dict[str, Any] | None:
        """Show what is left; the result, where the last line is one."""
        if self._rest:
            self._line(self._rest)
            self._rest = ""
        result, self._held = _object(self._held), ""
        return result


def _object(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
