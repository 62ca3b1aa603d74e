"""Who gets how many live entries: shares of a budget over rows and tables, places and quotas within a row.

In: counts, shapes or entries in canonical order (by row, then column) with their scores. Out: a whole number for each,
without a loop over rows. Ties go to the lower row, and within a row to the lower column, so that the result depends on
the entries alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hse_dist.config import BudgetSettings

Ints = npt.NDArray[np.int64]

BLOCK = 2**20
"""Entries sorted at a time; so that what a sort needs beside them is small, whatever the size of the table."""
SMALLEST_WEIGHT = 1e-9
"""Share of the heaviest weight that every row has at least, so that shares can add up to any budget."""
BISECTIONS = 100


def rows_compete(settings: BudgetSettings) -> bool:
    """Whether entries move between rows; else every row keeps its number through all rewires."""
    return settings.kind == "global"


def apportion(weights: npt.NDArray[np.float64], total: int, floors: Ints | int, ceilings: Ints | int) -> Ints:
    """Whole numbers in proportion to `weights`, between floors and ceilings, that add up to exactly `total`.

    What rounding down takes goes to the largest remainders (Hamilton's method), ties to the lower place.

    Args:
        weights: float64 [n], positive.
        total: at least the sum of the floors, at most that of the ceilings.

    Returns:
        int64 [n].
    """
    floors, ceilings = (np.broadcast_to(np.asarray(bound, np.int64), len(weights)) for bound in (floors, ceilings))
    weights = np.maximum(weights / weights.max(), SMALLEST_WEIGHT)
    # the sum of clip(scale · weight) grows with the scale from that of the floors to that of the ceilings
    low, high = 0.0, int(ceilings.max()) / SMALLEST_WEIGHT
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if np.clip(middle * weights, floors, ceilings).sum() < total:
            low = middle
        else:
            high = middle
    exact = np.clip(low * weights, floors, ceilings)
    shares = np.minimum(np.floor(exact).astype(np.int64), ceilings)
    while (missing := total - int(shares.sum())) > 0:
        below = np.flatnonzero(shares < ceilings)
        order = np.argsort(-(exact - shares)[below], kind="stable")
        shares[below[order[:missing]]] += 1
    return shares


def row_lengths(counts: Ints, *, total: int, power: float, floor: int, ceiling: Ints | int) -> Ints:
    """Lengths in proportion to count^power between floor and ceiling that add up to exactly `total`, int64 [rows].

    Args:
        counts: int64 [rows]; a count of 0 weighs as 1.
        total: floor · rows ≤ total ≤ the sum of the ceilings.
        ceiling: of all rows, or of each; where one is below the floor, it is the row's floor, too.
    """
    shares = np.maximum(counts, 1) / max(int(counts.max()), 1)
    return apportion(shares**power, total, np.minimum(floor, ceiling), ceiling)


def erdos_renyi(shapes: Sequence[tuple[int, int]], total: int) -> Ints:
    """The live entries of tables of different shape, int64 [tables]: densities in proportion to
    (rows + dims) / (rows · dims), so numbers to rows + dims; a row has at least one, a table no more than it can.

    One table gets the whole. Source: SET (Mocanu et al., Nature Communications 2018, eq. 3); Hoefler et al. (§3.9).

    Args:
        shapes: (rows, dims) of each table.
        total: at least the rows, at most the entries of all tables.
    """
    rows, dims = np.array(shapes, dtype=np.int64).T
    return apportion((rows + dims).astype(np.float64), total, rows, rows * dims)


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
    longer rows come first, within them those of the first rows. `apportion` would need the number of each row, and
    nobody who decides for all has these.

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
