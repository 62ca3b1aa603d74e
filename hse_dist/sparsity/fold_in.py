"""Rows for items that a table does not know, from the rows of the items beside which they stand in histories.

In: histories, and the rows of the items that are known in them. Out: the entries of the new rows, as they are appended
(`checkpoint/enlarge.py`). A new item's row points where the users who have it point: the sum over these users of their
pooled rows, a user's and an item's share weighted by 1 / √count, of which the strongest few columns stay. Where D is
the number of items and a spare column is left, the row has that one, too: others may grow into it.

Scale and sign are those of the neighbours: length and gain are their means, and where the gain is negative (the local
inverse, whose products are negative for items that go together) the row points the other way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

OWN_SHARE = 0.5
"""Size of the entry in the item's own column, as a share of the row's length."""
KEPT = 8
"""Columns that are held while sums grow, as a multiple of the entries that a row gets."""
SPREAD = 2_654_435_761
"""Of a row that has no neighbours: spreads such rows over columns."""


@dataclass(frozen=True)
class Folded:
    """New rows, CSR: offsets int64 [n + 1], columns int64 [E] rising within a row, values float32 [E]; gains [n]."""

    offsets: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    gains: np.ndarray


class FoldIn:
    """Sums over histories; those of several ranks are added up by `merge`.

    Args:
        counts: interactions of all items, old and new, int64 [rows].
        first: row of the first new item.
        dims: D. entries: that a new row gets at most.
    """

    def __init__(self, counts: np.ndarray, first: int, dims: int, entries: int) -> None:
        self.first, self.dims, self.entries = first, dims, entries
        self.weights = 1.0 / np.sqrt(np.maximum(counts, 1))
        new = len(counts) - first
        self.sums = sp.csr_matrix((new, dims))
        # of the neighbours, weighted: their number, lengths and gains
        self.facts = np.zeros((new, 3))

    def add(self, histories: sp.csr_matrix, known: np.ndarray, rows: sp.csr_matrix, gains: np.ndarray) -> None:
        """Add users.

        Args:
            histories: binary [users, all items]. known: the old items in them, int64 [C], rising.
            rows: of these, [C, D]. gains: of these, float [C].
        """
        lengths = np.asarray(histories.sum(axis=1)).ravel()
        users = sp.diags(1.0 / np.sqrt(np.maximum(lengths, 1.0)))
        beside = histories[:, self.first :].T @ users @ histories[:, known] @ sp.diags(self.weights[known])
        norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
        self.facts += beside @ np.stack([np.ones(len(known)), norms, gains], axis=1)
        self.sums = strongest(sp.csr_matrix(self.sums + beside @ rows), KEPT * self.entries)

    def merge(self, others: list[tuple[sp.csr_matrix, np.ndarray]]) -> None:
        """Become the sum of `sums` and `facts` of all ranks, in their order."""
        self.sums = sp.csr_matrix(sum((sums for sums, _ in others[1:]), others[0][0]))
        self.facts = sum((facts for _, facts in others), np.zeros_like(self.facts))

    def result(self, *, unit: bool, own_columns: bool) -> Folded:
        """The new rows.

        Args:
            unit: rows of length 1 without gains. own_columns: column r is that of row r, where there is one.
        """
        new = self.sums.shape[0]
        count, lengths, gains = self.facts.T
        alone = count <= 0
        lengths = np.where(alone, 1.0, lengths / np.where(alone, 1.0, count))
        usual = float(self.facts[:, 2].sum() / max(count.sum(), 1e-30)) or 1.0
        gains = np.where(alone, usual, gains / np.where(alone, 1.0, count))
        if unit:
            lengths, gains = np.ones(new), np.ones(new)
        rows = np.arange(self.first, self.first + new)
        own = np.where(own_columns & (rows < self.dims), rows, -1)
        alone = np.diff(self.sums.indptr) == 0
        own[alone & (own < 0)] = (rows * SPREAD % self.dims)[alone & (own < 0)]
        others = self.sums - self.sums.multiply(_ones(own, self.dims))
        limits = self.entries - (own >= 0)
        kept = _scaled(strongest(sp.csr_matrix(others), limits), np.where(own >= 0, (1 - OWN_SHARE**2) ** 0.5, 1.0))
        share = np.where(np.diff(kept.indptr) > 0, OWN_SHARE, 1.0)
        whole = sp.diags(np.where(gains < 0, -1.0, 1.0)) @ kept + sp.diags(share) @ _ones(own, self.dims)
        whole = sp.csr_matrix(sp.diags(lengths) @ whole)
        whole.sort_indices()
        offsets = whole.indptr.astype(np.int64)
        return Folded(offsets, whole.indices.astype(np.int64), whole.data.astype(np.float32), gains.astype(np.float32))


def _ones(columns: np.ndarray, dims: int) -> sp.csr_matrix:
    """A 1 in the column of each row that has one (−1: none)."""
    rows = np.flatnonzero(columns >= 0)
    return sp.csr_matrix((np.ones(len(rows)), (rows, columns[rows])), shape=(len(columns), dims))


def _scaled(rows: sp.csr_matrix, lengths: np.ndarray) -> sp.csr_matrix:
    """The rows at these lengths; those without entries stay so."""
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return sp.csr_matrix(sp.diags(lengths / np.where(norms > 0, norms, 1.0)) @ rows)


def strongest(rows: sp.csr_matrix, limits: np.ndarray | int) -> sp.csr_matrix:
    """The entries of largest size of each row, at most so many; of equal ones the lower columns. No zeros."""
    rows.sum_duplicates()
    rows.eliminate_zeros()
    of_entry = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    order = np.lexsort((rows.indices, -np.abs(rows.data), of_entry))
    place = np.arange(len(order)) - rows.indptr[of_entry]
    order = order[place < np.broadcast_to(limits, rows.shape[0])[of_entry]]
    return sp.csr_matrix((rows.data[order], (of_entry[order], rows.indices[order])), shape=rows.shape)
