"""The best items of users by the compiled kernels (`native/retrieve.cpp`): scores and top k in one sweep.

In: an export's matrix and gains; users as CSR over columns, and their histories. Out: the rows and scores that
`Recommender` gives without kernels, bit by bit: sums are taken in the same order.

There are two ways. *By items* reads every live entry of every item once for 32 users, whose vectors lie side by side;
what it takes does not depend on the users. *By columns* reads, for one user at a time, the entries in the columns that
this user has: a user of sixty items has a third of 4 096 columns, but 3 % of 65 536. Whichever reads fewer entries is
taken: an entry costs about the same in both (measured with 1 000 000 items of 32, D = 4 096 and 65 536: 1.8 and 3 ns).
"""

from __future__ import annotations

import os
import threading
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from hse_dist.native.library import call, library

LANES = 32
"""Users that are scored side by side, as in the kernel."""


def available(matrix: sp.csr_matrix) -> bool:
    """Whether the kernels are there and take this matrix."""
    return library() is not None and matrix.indices.dtype == np.int32 and matrix.data.dtype == np.float32


class Sweep:
    """Top items of an export.

    Args:
        matrix: float32 CSR [items, D], columns rising within a row. gains: float32 [items].
        threads: None: all cores that this process may use.
        by_column: the matrix by columns, [D, items], rows rising; None: made when a user comes who has few of them.
        lengths: entries of each column, if somebody knows them.
    """

    def __init__(
        self,
        matrix: sp.csr_matrix,
        gains: np.ndarray,
        threads: int | None = None,
        by_column: sp.csr_matrix | None = None,
        lengths: np.ndarray | None = None,
    ) -> None:
        self._turned, self._lengths, self._turning = by_column, lengths, threading.Lock()
        self._matrix, self._gains = matrix, np.ascontiguousarray(gains, np.float32)
        self._offsets = matrix.indptr.astype(np.int64)
        self._threads = threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)

    @property
    def turned(self) -> bool:
        """Whether the matrix by columns is there."""
        return self._turned is not None

    def _by_column(self) -> sp.csr_matrix:
        with self._turning:  # threads that come first together need one of it
            if self._turned is None:
                self._turned = self._matrix.T.tocsr()
            return self._turned

    @cached_property
    def _column_lengths(self) -> np.ndarray:
        if self._turned is not None:
            return np.diff(self._turned.indptr)
        if self._lengths is not None:
            return self._lengths
        return np.bincount(self._matrix.indices, minlength=self._matrix.shape[1])

    def prepare(self, *, turn: bool = False) -> None:
        """Count the columns' entries now, which the first user would wait for; or turn the matrix."""
        if turn:
            self._by_column()
        _ = self._column_lengths

    def _cost(self, users: sp.csr_matrix) -> tuple[int, int]:
        """Entries that are read by items, and by columns."""
        blocks = -(-users.shape[0] // LANES)
        return blocks * self._matrix.nnz, self.entries(users)

    def entries(self, users: sp.csr_matrix) -> int:
        """Of the items, in the users' columns."""
        return int(self._column_lengths[users.indices].sum())

    def top(
        self, users: sp.csr_matrix, histories: sp.csr_matrix, k: int, blocked: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best `k` items of each user that are not in the history.

        Args:
            users: float32 CSR [B, D], columns rising. histories: CSR [B, items], rows rising. k: at most the items.
            blocked: uint8 [items], not 0 where an item is no answer for anyone.

        Returns:
            rows int64 and scores float32, [B, k], best first; -1 and -inf where a user has fewer items.
        """
        offsets, columns = users.indptr.astype(np.int64), users.indices.astype(np.int32, copy=False)
        count = len(offsets) - 1
        rows, scores = np.empty((count, k), np.int64), np.empty((count, k), np.float32)
        seen = (histories.indptr.astype(np.int64), histories.indices.astype(np.int64))
        asked = (offsets, columns, users.data, *seen, blocked)
        items, dims = self._matrix.shape
        by_items, by_columns = self._cost(users)
        if by_columns < by_items:
            turned, threads = self._by_column(), min(self._threads, count)
            space = np.empty(threads * items, np.float32)
            ends = turned.indptr.astype(np.int64)
            matrix = (ends, turned.indices, turned.data, self._gains)
            call("hse_top_by_columns", items, count, k, threads, *matrix, *asked, space, rows, scores)
        else:
            threads = max(1, min(self._threads, items))
            space = _aligned(dims * LANES)
            matrix = (self._offsets, self._matrix.indices, self._matrix.data, self._gains)
            call("hse_top_by_items", items, dims, count, k, threads, *matrix, *asked, space, rows, scores)
        return rows, scores


def _aligned(floats: int) -> np.ndarray:
    """Memory from a multiple of 64 bytes on: a vector that lies across two lines of the cache takes twice as long."""
    memory = np.empty(floats + 16, np.float32)
    skip = -memory.ctypes.data % 64 // 4
    return memory[skip : skip + floats]
