"""Shares within a row: floors, room and the strongest few, without a loop over rows.

In: entries in canonical order (by row, then column) with their scores. Out: masks over them. Ties within a row go to
the lower column, so that the result depends on the entries alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


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


def count_by_row(rows: Ints, mask: Mask, first: int, last: int) -> Ints:
    """How many of the marked entries each of the rows first … last − 1 has, int64 [last − first]."""
    return np.bincount(rows[mask] - first, minlength=last - first)


def row_drops(live: Ints, fraction: float, floor: int) -> Ints:
    """Entries that each row gives up when budgets are kept row by row, int64 [rows]."""
    return np.minimum((fraction * live).astype(np.int64), np.maximum(live - floor, 0))
