"""Shares within a row: places and quotas, without a loop over rows.

In: entries in canonical order (by row, then column) with their scores. Out: a number for each. Ties within a row go to
the lower column, so that the result depends on the entries alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

BLOCK = 2**20
"""Entries sorted at a time; so that what a sort needs beside them is small, whatever the size of the table."""


def ranks_in_row(rows: Ints, keys: npt.NDArray[np.uint32], *, largest: bool) -> Ints:
    """The place of each entry in its row, 0 for the largest (smallest) key.

    Args:
        rows: int64 [n], ascending.
        keys: uint32 [n].
    """
    if not len(rows):
        return np.empty(0, dtype=np.int64)
    order_by = keys.astype(np.int64)
    order = np.lexsort((-order_by if largest else order_by, rows))
    starts = np.flatnonzero(np.concatenate([[True], np.diff(rows) > 0]))
    counts = np.diff(np.concatenate([starts, [len(rows)]]))
    places = np.empty(len(rows), dtype=np.int64)
    places[order] = np.arange(len(rows)) - np.repeat(starts, counts)
    return places


def row_blocks(offsets: Ints) -> Iterator[tuple[int, int]]:
    """Half-open ranges of rows that hold some `BLOCK` entries each, by `offsets` int64 [rows + 1]."""
    first, rows = 0, len(offsets) - 1
    while first < rows:
        last = max(int(np.searchsorted(offsets, offsets[first] + BLOCK)), first + 1)
        last = min(last, rows)
        yield first, last
        first = last


def row_drops(live: Ints, fraction: float, floor: int) -> Ints:
    """Entries that each row gives up when budgets are kept row by row, int64 [rows]."""
    return np.minimum((fraction * live).astype(np.int64), np.maximum(live - floor, 0))
