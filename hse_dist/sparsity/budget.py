"""Shares within a row: places and quotas, without a loop over rows.

In: entries in canonical order (by row, then column) with their scores. Out: a number for each. Ties within a row go to
the lower column, so that the result depends on the entries alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

BLOCK = 2**20
"""Entries sorted at a time; so that what a sort needs beside them is small, whatever the size of the table."""

BISECTIONS = 100


@dataclass(frozen=True)
class RowNumbers:
    """What rows are cut down to, by their live entries now: those with n keep base[n], the first more[n] one more.

    Attributes:
        base, more: int64 [n].
    """

    base: Ints
    more: Ints

    def of(self, live: Ints) -> Ints:
        """The numbers of rows with `live` entries, int64 [rows], in row order."""
        order = np.argsort(live, kind="stable")
        starts = np.searchsorted(live[order], np.arange(len(self.base)))
        numbers = self.base[live]
        numbers[order] += np.arange(len(live)) - starts[live[order]] < self.more[live[order]]
        return numbers


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


def row_numbers(rows_by_live: Ints, total: int, floor: int) -> RowNumbers:
    """Cut all rows down in proportion to their live entries, to exactly `total` in all, by the largest remainder.

    Rows with equal numbers have equal remainders, so that a few counts decide for all; of equal remainders those of
    longer rows come first, within them those of the first rows.

    Args:
        rows_by_live: int64 [n], how many rows have 0, 1, 2 … live entries.
        total: at most what they have, at least what they keep by `floor`.
        floor: live entries that a row keeps.
    """
    live = np.arange(len(rows_by_live))
    least = np.minimum(live, floor)
    low, high = 0.0, 1.0
    if int((live * rows_by_live).sum()) <= total:
        low = high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2.0
        fits = (np.maximum(middle * live, least) * rows_by_live).sum() <= total
        low, high = (middle, high) if fits else (low, middle)
    exact = np.maximum(low * live, least)
    base = exact.astype(np.int64)
    more = np.zeros_like(base)
    missing = total - int((base * rows_by_live).sum())
    for number in np.lexsort((-live, base - exact)):
        if base[number] < live[number]:
            more[number] = min(missing, rows_by_live[number])
            missing -= int(more[number])
    return RowNumbers(base, more)


def divide(numbers: RowNumbers, rows_by_live: Iterable[Ints]) -> list[RowNumbers]:
    """The part of each rank, the ranks in the order of their rows: what goes to the first rows goes to the first ranks.

    Args:
        rows_by_live: of each rank, int64 [n] of one length.
    """
    parts, left = [], numbers.more.copy()
    for rows in rows_by_live:
        own = np.minimum(left, rows)
        left -= own
        parts.append(RowNumbers(numbers.base, own))
    return parts
