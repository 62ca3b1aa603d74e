"""Two starts as one: that of the items, and behind it that of the rows of features.

In: two start folders of equal columns. Out: what a table is filled from, with the rows of the second behind those of
the first. Items keep a start of their own, which does not depend on features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from hse_dist.config import Config
from hse_dist.errors import DataError
from hse_dist.sparsity.start.folder import Floats, Ints, StartFolder

FEATURES = "start-features"
"""Beside the folder of the items' start."""


class Start(Protocol):
    """What a table is filled from; see `StartFolder`."""

    rows: int
    dims: int
    live_entries: int

    def live(self, first: int = 0, last: int | None = None) -> Ints:
        """Entries of each row."""

    def gains(self, first: int = 0, last: int | None = None) -> Floats:
        """Gain of each row."""

    def entries(self, first: int = 0, last: int | None = None) -> tuple[Ints, Ints, Floats]:
        """Rows as CSR."""


def open_start(config: Config, folder: str | Path) -> Start:
    """The start of a run, that of its features included.

    Raises:
        DataError: see `StartFolder`; or the two do not belong together.
    """
    items = StartFolder(folder)
    return JoinedStart(items, StartFolder(Path(folder).with_name(FEATURES))) if config.tables.features else items


class JoinedStart:
    """Rows of `first`, then those of `second`.

    Raises:
        DataError: they have other columns.
    """

    def __init__(self, first: StartFolder, second: StartFolder) -> None:
        if first.dims != second.dims:
            raise DataError(
                f"The starts at {first.folder} and {second.folder} have {first.dims} and {second.dims} columns.",
                cause="Remove both folders; the next training run makes them again.",
            )
        self.parts = (first, second)
        self.rows, self.dims = first.rows + second.rows, first.dims
        self.live_entries = first.live_entries + second.live_entries

    def live(self, first: int = 0, last: int | None = None) -> Ints:
        """Entries of the rows first … last - 1, int64."""
        return np.concatenate([part.live(*bounds) for part, bounds in self._parts(first, last)])

    def gains(self, first: int = 0, last: int | None = None) -> Floats:
        """Gains of the rows first … last - 1, float32."""
        return np.concatenate([part.gains(*bounds) for part, bounds in self._parts(first, last)])

    def entries(self, first: int = 0, last: int | None = None) -> tuple[Ints, Ints, Floats]:
        """The rows first … last - 1 as CSR; see `StartFolder`."""
        read = [part.entries(*bounds) for part, bounds in self._parts(first, last)]
        offsets = np.concatenate([[0], *(np.diff(offsets) for offsets, _, _ in read)]).cumsum()
        columns, values = (np.concatenate([part[index] for part in read]) for index in (1, 2))
        return offsets, columns, values

    def _parts(self, first: int, last: int | None) -> list[tuple[StartFolder, tuple[int, int]]]:
        """Which rows of which part these are."""
        last, found, begin = self.rows if last is None else last, [], 0
        if not 0 <= first <= last <= self.rows:
            raise IndexError(f"rows {first} to {last} of {self.rows}")
        for part in self.parts:
            bounds = tuple(int(np.clip(row - begin, 0, part.rows)) for row in (first, last))
            found.append((part, (bounds[0], bounds[1])))
            begin += part.rows
        return found
