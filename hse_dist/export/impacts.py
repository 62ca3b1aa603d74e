"""The best items of one user from the inverted index (`postings.py`): exact, or early with what was read by then.

In: an export's matrix, gains and index; a user's vector, history and choice. Out: the rows and scores of every other
way, bit by bit.

*Exact.* The largest contributions are added up first: blocks of postings in which one may add t or more. What an item
of n live entries can still get is below n · t, so items whose sum and this stay below the k-th best score are out;
the others are scored from their rows. If these are too many, t is lowered. Only the kernel (`native/impacts.cpp`)
does this: without it, SciPy's products are as fast and give the same.

*Early.* Only so many postings are read, those with the largest contributions, and the items with the best sums are
scored from their rows: scores are right, but an item may be missing. The kernel and NumPy give the same answers.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from hse_dist.export.postings import BLOCK, MOST, RANGE, Postings, impacts_of
from hse_dist.native.library import call, library

SPARE = 8
"""Early: items that are scored from their rows, for each that is asked for."""
_LEVEL = 20
"""Bits of a float that its level leaves out: there are eight levels an octave."""


@dataclass(frozen=True)
class Work:
    """What an answer took: postings read, items scored from their rows, rounds of reading."""

    postings: int
    scored: int
    rounds: int


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

    def top(
        self, user: sp.csr_matrix, seen: np.ndarray, k: int, blocked: np.ndarray | None = None, most: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, Work]:
        """The best `k` items of one user.

        Args:
            user: float32 CSR [1, D], columns rising. seen: rows that are no answer, rising. k: at most the items.
            blocked: uint8 [items], not 0 where an item is no answer.
            most: postings that may be read; None: an exact answer, which takes kernels.

        Returns:
            rows int64 and scores float32, [k], best first; −1 and −inf beyond the last. And what it took.
        """
        if not self._kernels:
            assert most is not None, "without kernels the exact way is another"
            return self._early(user, seen, k, blocked, most)
        partial, dense = self._space()
        rows, scores, counts = np.empty(k, np.int64), np.empty(k, np.float32), np.zeros(3, np.int64)
        index, matrix = self._postings, self._matrix
        columns, seen = user.indices.astype(np.int32, copy=False), seen.astype(np.int64, copy=False)
        call(
            "hse_top_by_impact", *matrix.shape, k, -1 if most is None else most, SPARE * k, self._rounding,
            self._underflow, index.ends, index.postings, index.block_ends, index.tops, index.scales, self._offsets,
            matrix.indices, matrix.data, self._gains, self._lengths, len(columns), columns, user.data,
            len(seen), seen, blocked, partial, dense, rows, scores, counts,
        )  # fmt: skip
        return rows, scores, Work(*counts.tolist())

    def _space(self) -> tuple[np.ndarray, np.ndarray]:
        """Scratch of this thread: it is written over and over, and new memory costs more than to fill it."""
        if not hasattr(self._scratch, "arrays"):
            self._scratch.arrays = np.empty(RANGE, np.float32), np.zeros(self._matrix.shape[1], np.float32)
        return self._scratch.arrays

    def _early(
        self, user: sp.csr_matrix, seen: np.ndarray, k: int, blocked: np.ndarray | None, most: int
    ) -> tuple[np.ndarray, np.ndarray, Work]:
        """The early answer in NumPy."""
        items, dims = self._matrix.shape
        index, columns = self._postings, user.indices
        weights = (user.data.astype(np.float64) * index.scales[columns] / MOST).astype(np.float32)
        partial, total = np.zeros(items, np.float32), 0
        least = self._least(columns, weights, most)
        for place in range(-(-items // RANGE)):
            block, owner = _runs(index.block_ends, place * dims + columns)
            # tops fall within a list, so the blocks that are kept stand in front
            kept = np.abs(weights)[owner] * index.tops[block].astype(np.float32) >= np.float32(least)
            blocks = np.bincount(owner[kept], minlength=len(columns))
            lists = place * dims + columns
            counts = np.minimum(blocks * BLOCK, index.ends[lists + 1] - index.ends[lists])
            entry = np.repeat(index.ends[lists], counts) + _within(counts)
            found = index.postings[entry]
            parts = np.repeat(weights, counts) * impacts_of(found).astype(np.float32)
            np.add.at(partial, place * RANGE + (found % RANGE).astype(np.int64), parts)
            total += len(entry)
        able = np.ones(items, bool) if blocked is None else blocked == 0
        able[seen] = False
        rows = np.flatnonzero(able)
        rows = np.sort(rows[np.lexsort((rows, -partial[rows]))[: max(SPARE * k, k)]])
        score = (user @ self._matrix[rows].T).toarray()[0] * self._gains[rows] + np.float32(0)
        best = np.lexsort((rows, -score))[:k]
        top, scores = np.full(k, -1, np.int64), np.full(k, -np.inf, np.float32)
        top[: len(best)], scores[: len(best)] = rows[best], score[best]
        return top, scores, Work(total, len(rows), 1)

    def _least(self, columns: np.ndarray, weights: np.ndarray, most: int) -> float:
        """The least contribution of which at most `most` postings are, by whole levels and blocks."""
        index, dims = self._postings, self._matrix.shape[1]
        counts = np.zeros(2**11, np.int64)
        for place in range((len(index.ends) - 1) // dims):
            block, owner = _runs(index.block_ends, place * dims + columns)
            sizes = np.abs(weights)[owner] * index.tops[block].astype(np.float32)
            counts += np.bincount((sizes.view(np.int32) & 0x7FFFFFFF) >> _LEVEL, minlength=len(counts)) * BLOCK
        above = np.cumsum(counts[::-1])
        level = len(counts) - int(np.searchsorted(above, most, side="right"))
        return float(np.array([level << _LEVEL], np.int32).view(np.float32)[0])


def _within(counts: np.ndarray) -> np.ndarray:
    """0 … count − 1 of each count, one after the other."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def _runs(ends: np.ndarray, lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What lies between the ends of these lists, and the place of its list among them."""
    counts = ends[lists + 1] - ends[lists]
    return np.repeat(ends[lists], counts) + _within(counts), np.repeat(np.arange(len(lists)), counts)
