"""Rows for items that a table does not know, from the rows of the items beside which they stand in histories.

In: histories, and the rows of the items that are known in them. Out: the entries of the new rows, as they are appended
(`checkpoint/enlarge.py`).

*Direction.* A new item's row points where the users who have it point: the sum over these users of their pooled rows, a
user's and an item's share weighted by 1 / √count, of which the strongest few columns stay. Where the gain is negative
(the local inverse, whose products are negative for items that go together) the row points the other way.

*Level.* A row that points at the middle of its users would be recommended to everybody. So that part of the row is
scaled until the item's mean score over all users stands to its popularity as those of known items of similar counts do.
What is left of the row's length goes where it disturbs least: into the item's own column where D is the number of items
and a spare column is left (others may grow into it), else into a column in which users have little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

MOST_SHARED, LEAST_SHARED = 0.95, 0.05
"""Bounds of the part of a row that it shares with others, as a share of the row's length."""
KEPT, KEPT_OF_USERS = 8, 32
"""Columns of a sum, and of a user's pooled row, that are held, as multiples of the entries that a row gets. With 8 of
users new rows of made-up data were further from exact sums (cosine 0.80) than with all or 32 (0.95)."""
POOLED_ENTRIES, HELD_ENTRIES = 1 << 23, 1 << 22
"""Entries of rows that are pooled at a time, and that sums grow by at least before the strongest are chosen."""
TRIED, SPREAD = 16, 2_654_435_761
"""Columns, spread over all, of which a row without one of its own takes the one that users have least in."""


@dataclass(frozen=True)
class Folded:
    """New rows, CSR: offsets int64 [n + 1], columns int64 [E] rising within a row, values float32 [E]; gains [n]."""

    offsets: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    gains: np.ndarray


@dataclass(frozen=True)
class Level:
    """What scores are like: the sum of all users' pooled rows, float64 [D], and the score of a unit of popularity."""

    pooled: np.ndarray
    score: float


def user_weights(lengths: np.ndarray) -> np.ndarray:
    """What users count, float64 [users]: scores of long histories are larger, and mean no more."""
    return 1.0 / np.sqrt(np.maximum(lengths, 1.0))


class FoldIn:
    """Sums over histories; those of several ranks are added up by `merge`.

    Args:
        counts: interactions of all items, old and new, int64 [rows].
        new: rows of the new items, int64 [n], rising.
        dims: D. entries: that a new row gets at most.
    """

    def __init__(self, counts: np.ndarray, new: np.ndarray, dims: int, entries: int) -> None:
        self.new, self.dims, self.entries = new, dims, entries
        self.weights = 1.0 / np.sqrt(np.maximum(counts, 1))
        self._sums = sp.csr_matrix((len(new), dims))
        self._held: list[sp.csr_matrix] = []
        # of the neighbours, weighted: their number, lengths and gains
        self.facts = np.zeros((len(new), 3))

    def add(self, histories: sp.csr_matrix, known: np.ndarray, rows: sp.csr_matrix, gains: np.ndarray) -> None:
        """Add users.

        Args:
            histories: binary [users, all items]. known: the old items in them, int64 [C], rising.
            rows: of these, [C, D]. gains: of these, float [C].
        """
        users = sp.diags(user_weights(np.asarray(histories.sum(axis=1)).ravel()))
        mine, of_new = sp.csr_matrix(histories[:, known]), sp.csc_matrix(histories[:, self.new])
        weighted = sp.csr_matrix(users @ mine @ sp.diags(self.weights[known]))
        norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
        self.facts += of_new.T @ (weighted @ np.stack([np.ones(len(known)), norms, gains], axis=1))
        # users first: the rows of a user's items are multiplied out once, however many new items the user has
        pieces = np.cumsum(mine @ np.diff(rows.indptr)) // POOLED_ENTRIES
        for piece in np.split(np.arange(len(pieces)), np.flatnonzero(np.diff(pieces)) + 1):
            pooled = pruned(sp.csr_matrix(weighted[piece] @ rows), KEPT_OF_USERS * self.entries)
            self._held.append(sp.csr_matrix(of_new[piece].T @ pooled))
            if sum(held.nnz for held in self._held) > max(HELD_ENTRIES, self._sums.nnz):
                self._add_held()

    @property
    def sums(self) -> sp.csr_matrix:
        """The sum over users of their pooled rows, the strongest columns of each new item, [n, D]."""
        self._add_held()
        return self._sums

    def _add_held(self) -> None:
        held, self._held = self._held, []
        if held:
            self._sums = pruned(sp.csr_matrix(sum(held, self._sums)), KEPT * self.entries)

    def merge(self, others: list[tuple[sp.csr_matrix, np.ndarray]]) -> None:
        """Become the sum of `sums` and `facts` of all ranks, in their order."""
        self._held, self._sums = [], sp.csr_matrix(sum((sums for sums, _ in others[1:]), others[0][0]))
        self.facts = sum((facts for _, facts in others), np.zeros_like(self.facts))

    def result(self, level: Level, popularity: np.ndarray, *, unit: bool, own_columns: bool) -> Folded:
        """The new rows.

        Args:
            popularity: the new items' users, weighted by `user_weights`, float64 [n].
            unit: rows of length 1 without gains. own_columns: column r is that of row r, where there is one.
        """
        count, lengths, gains = self.facts.T
        alone = count <= 0
        usual = float(self.facts[:, 2].sum() / max(count.sum(), 1e-30)) or 1.0
        lengths = np.where(alone, 1.0, lengths / np.where(alone, 1.0, count))
        gains = np.where(alone, usual, gains / np.where(alone, 1.0, count))
        if unit:
            lengths, gains = np.ones(len(count)), np.ones(len(count))
        rest = np.where(own_columns & (self.new < self.dims), self.new, quiet_columns(self.new, level.pooled))
        others = sp.csr_matrix(self.sums - self.sums.multiply(_ones(rest, self.dims)))
        shared = to_length_one(strongest(others, self.entries - 1))
        reach = np.abs(shared @ level.pooled) * np.abs(gains) * lengths
        share = np.where(reach > 0, abs(level.score) * popularity / np.where(reach > 0, reach, 1.0), MOST_SHARED)
        share = np.where(np.diff(shared.indptr) > 0, np.clip(share, LEAST_SHARED, MOST_SHARED), 0.0)
        signs = np.where(gains < 0, -1.0, 1.0)
        whole = sp.diags(signs * share) @ shared + sp.diags(np.sqrt(1.0 - share**2)) @ _ones(rest, self.dims)
        whole = sp.csr_matrix(sp.diags(lengths) @ whole)
        whole.sort_indices()
        offsets = whole.indptr.astype(np.int64)
        return Folded(offsets, whole.indices.astype(np.int64), whole.data.astype(np.float32), gains.astype(np.float32))


def quiet_columns(rows: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """For each row, of `TRIED` columns that depend on it alone, the one in which users have least; int64 [n]."""
    tried = (rows[:, None] * TRIED + np.arange(TRIED)) * SPREAD % len(pooled)
    found: np.ndarray = tried[np.arange(len(rows)), np.abs(pooled[tried]).argmin(axis=1)]
    return found


def _ones(columns: np.ndarray, dims: int) -> sp.csr_matrix:
    """A 1 in the column of each row."""
    return sp.csr_matrix((np.ones(len(columns)), (np.arange(len(columns)), columns)), shape=(len(columns), dims))


def to_length_one(rows: sp.csr_matrix) -> sp.csr_matrix:
    """Those without entries stay so."""
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return sp.csr_matrix(sp.diags(1.0 / np.where(norms > 0, norms, 1.0)) @ rows)


def pruned(rows: sp.csr_matrix, limit: int) -> sp.csr_matrix:
    """Entries of largest size of each row, at most so many, of equal ones any; faster than `strongest`.

    Args:
        rows: no column twice in a row.
    """
    lengths, sizes = np.diff(rows.indptr), np.abs(rows.data)
    kept = np.ones(rows.nnz, bool)
    for row in np.flatnonzero(lengths > limit):
        first, surplus = rows.indptr[row], lengths[row] - limit
        kept[first + np.argpartition(sizes[first : rows.indptr[row + 1]], surplus)[:surplus]] = False
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, limit))])
    return sp.csr_matrix((rows.data[kept], rows.indices[kept], offsets), shape=rows.shape)


def strongest(rows: sp.csr_matrix, limit: int) -> sp.csr_matrix:
    """The entries of largest size of each row, at most so many; of equal ones the lower columns. No zeros."""
    rows.sum_duplicates()
    rows.eliminate_zeros()
    of_entry = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    order = np.lexsort((rows.indices, -np.abs(rows.data), of_entry))
    place = np.arange(len(order)) - rows.indptr[of_entry]
    order = order[place < limit]
    return sp.csr_matrix((rows.data[order], (of_entry[order], rows.indices[order])), shape=rows.shape)
