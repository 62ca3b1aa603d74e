"""The best items of one user from the inverted index (`postings.py`): exact, or early with what was read by then.

In: an export's matrix, gains and index; a user's vector, history and choice. Out: the rows and scores of every other way,
bit by bit.

*Exact.* The largest contributions are added up first: blocks of postings in which one may be above a threshold t. What
an item of n live entries can still get is below n · t, so items whose sum and this stay below the k-th best score are out;
the others are scored from their rows. If these are too many, t is lowered. *Early.* Only so many postings are read, those
with the largest contributions, and the items with the best sums are scored from their rows: the scores are right, but an
item may be missing. `native/impacts.cpp` does it, and the same is here in NumPy.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from hse_dist.export.postings import MOST, RANGE, Postings
from hse_dist.native.library import call, library

SPARE = 8
"""Early: items that are scored from their rows, for each that is asked for."""


@dataclass(frozen=True)
class Work:
    """What an answer took: postings read, items scored from their rows, thresholds tried."""

    postings: int
    scored: int
    thresholds: int


class Impacts:
    """Answers from an index.

    Args:
        matrix: float32 CSR [items, D], columns rising within a row. gains: float32 [items].
        kernels: False leaves them unused.
    """

    def __init__(self, matrix: sp.csr_matrix, gains: np.ndarray, postings: Postings, *, kernels: bool = True) -> None:
        self._matrix, self._gains, self._postings = matrix, np.ascontiguousarray(gains, np.float32), postings
        self._offsets = matrix.indptr.astype(np.int64, copy=False)
        self._lengths = np.diff(self._offsets).astype(np.int32)
        self._kernels = kernels and library() is not None
        self._scratch = threading.local()
        longest = int(self._lengths.max(initial=0))
        # an impact is within half a step; n summands and as many in the score itself are rounded a few times each
        self._rounding = 0.51 / MOST + (2 * longest + 16) * 2.0**-24
        self._underflow = 2.0**-130 * (1.0 + float(np.abs(self._gains).max(initial=0)))

    def postings_of(self, columns: np.ndarray) -> int:
        """Entries of the items in these columns."""
        ends = self._postings.ends
        lists = np.add.outer(np.arange(0, len(ends) - 1, self._matrix.shape[1]), columns)
        return int((ends[lists + 1] - ends[lists]).sum())

    def top(
        self, user: sp.csr_matrix, seen: np.ndarray, k: int, blocked: np.ndarray | None = None, most: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, Work]:
        """The best `k` items of one user.

        Args:
            user: float32 CSR [1, D], columns rising. seen: rows that are no answer, rising. k: at most the items.
            blocked: uint8 [items], not 0 where an item is no answer.
            most: postings that may be read; None: an exact answer.

        Returns:
            rows int64 and scores float32, [k], best first; −1 and −inf beyond the last. And what it took.
        """
        partial, dense = self._space()
        rows, scores, counts = np.empty(k, np.int64), np.empty(k, np.float32), np.zeros(3, np.int64)
        index = self._postings
        call(
            "hse_top_by_impact", *self._matrix.shape, k, -1 if most is None else most, SPARE * k, self._rounding,
            self._underflow, index.ends, index.postings, index.block_ends, index.tops, index.scales,
            self._offsets, self._matrix.indices, self._matrix.data, self._gains, self._lengths,
            user.nnz, user.indices.astype(np.int32, copy=False), user.data, len(seen), seen.astype(np.int64, copy=False),
            blocked, partial, dense, rows, scores, counts,
        )  # fmt: skip
        return rows, scores, Work(*counts.tolist())

    def _space(self) -> tuple[np.ndarray, np.ndarray]:
        """Scratch of this thread: it is written over and over, and new memory costs more than to fill it."""
        if not hasattr(self._scratch, "arrays"):
            self._scratch.arrays = np.empty(RANGE, np.float32), np.zeros(self._matrix.shape[1], np.float32)
        return self._scratch.arrays
