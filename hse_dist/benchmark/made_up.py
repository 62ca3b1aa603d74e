"""A made-up table with the shape of a trained one, and histories that fit it.

In: sizes. Out: blocks of rows for an export, and histories as rows. Random rows would be of no use for measuring an
index: what it leaves out depends on how sizes of entries, popularity of columns and likeness of rows are spread.

Measured on Gowalla (41 000 items, D = 4 096, 32 entries a row on average, random start, trained and rewired for three
epochs), in brackets the same of 41 000 items from here:

* of all entries 7 % (8) are in the most popular 1 % of columns, 30 % (28) in the first 10 %;
* of a row of length 1 the largest entry is .50 (.49), the ninth .17 (.17), the median .09 (.08);
* cosines with the 1st, 10th, 50th and 100th nearest row are .45, .30, .18, .13 (.49, .35, .19, .14).

Rows belong to groups of 40 and take half of their entries from their group. Half of a history is from five groups, the
other half any items, popular ones more often. Real histories of that table have more in common than these: an exact
answer read 25 % of the postings in their columns, and 41 % here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hse_dist.export.rows import RowBlock

GROUP, KEPT, NOISE, INTERESTS = 40, 0.5, 0.3, 5
BLOCK_ROWS = 65_536
SPARE = 1.4
"""Entries that are drawn for each that is needed, as some columns come twice."""


@dataclass(frozen=True)
class MadeUp:
    """`items` rows of `live` entries out of `dims` columns."""

    items: int
    live: int
    dims: int

    def _groups(self) -> np.ndarray:
        """The group of each item."""
        return np.random.default_rng(1).integers(0, max(1, self.items // GROUP), self.items)

    def _columns(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        return np.minimum(self.dims * rng.random(shape) ** (1 / 0.55), self.dims - 1).astype(np.int64)

    def blocks(self) -> Iterator[RowBlock]:
        """All rows, which have length 1 once they are exported with `row_norm = "unit"`."""
        rng, drawn = np.random.default_rng(0), min(self.dims, round(SPARE * self.live))
        groups = self._groups()
        shape = (int(groups.max()) + 1, drawn)
        common, sizes = self._columns(rng, shape), _values(rng, shape)
        for first in range(0, self.items, BLOCK_ROWS):
            of = groups[first : first + BLOCK_ROWS]
            columns, values = self._columns(rng, (len(of), drawn)), _values(rng, (len(of), drawn))
            kept = rng.random(columns.shape) < KEPT
            columns[kept] = common[of][kept]
            values[kept] = (sizes[of] * (1 + NOISE * rng.standard_normal(kept.shape)))[kept]
            yield _distinct(columns, values, self.live)

    def histories(self, count: int, length: int) -> list[np.ndarray]:
        """Distinct rows, `length` or a few less, in no order."""
        rng, groups = np.random.default_rng(2), self._groups()
        order = np.argsort(groups, kind="stable")
        ends = np.concatenate([[0], np.cumsum(np.bincount(groups))])
        found = []
        for _ in range(count):
            liked = groups[(self.items * rng.random(INTERESTS) ** 3).astype(np.int64)]
            alike = np.concatenate([order[ends[group] : ends[group + 1]] for group in liked])
            half = rng.choice(alike, min(len(alike), length // 2), replace=False)
            others = (self.items * rng.random(length - len(half)) ** 3).astype(np.int64)
            found.append(rng.permutation(np.unique(np.concatenate([half, others]))))
        return found


def _values(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Of a row, some are far larger than the others."""
    normal = rng.standard_normal(shape)
    return normal * np.sqrt(np.abs(normal))


def _distinct(columns: np.ndarray, values: np.ndarray, live: int) -> RowBlock:
    """Of each row the first `live` columns that are not there twice; fewer where there are not so many."""
    order = np.argsort(columns, axis=1, kind="stable")
    ranked = np.take_along_axis(columns, order, 1)
    again = np.zeros(columns.shape, bool)
    np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], 1)
    kept = ~again & (np.cumsum(~again, axis=1) <= live)
    offsets = np.concatenate([[0], np.cumsum(kept.sum(1))])
    return RowBlock(offsets, columns[kept], values[kept].astype(np.float32), np.ones(len(columns), np.float32))
