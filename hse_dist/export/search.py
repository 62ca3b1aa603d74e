"""Finds the best items of users, in the way that should take least.

In: an export's matrix and gains; users' vectors and histories as CSR, and the choice of items. Out: rows and scores,
equal bit by bit whichever way is taken, unless an early answer was asked for.

* *Few items* may be answers: they are scored alone.
* *The sweep* (`sweep.py`) reads all entries for 32 users at once, or all in a user's columns.
* *The index* (`impacts.py`) reads those postings in a user's columns that have the largest contributions. Measured with
  a million items of 32 entries, D = 4 096: 15 % of them for the rows of a trained table and real histories, 40 % for
  made-up ones (`benchmark/made_up.py`), 70 % for random rows. It serves one user at a time on one core, and pays where
  lists are long: what reads few postings of each of many lists waits for the memory.
* *SciPy's products*, where there are no kernels.

An index that is not part of the export is built when it would have saved what it takes to build.
"""

from __future__ import annotations

import threading
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from hse_dist.export.choice import Choice
from hse_dist.export.impacts import Impacts
from hse_dist.export.own import Found, owners
from hse_dist.export.postings import LONG, RANGE, Postings, build, pays
from hse_dist.export.sweep import LANES, Sweep, available
from hse_dist.export.topk import top_k

READ = 0.4
"""What the index takes for a posting in the user's columns, in what the sweep takes for an entry."""
BUILDING = 30
"""What building the index takes for an entry, likewise."""


class Search:
    """Args:
    threads: of the sweep. kernels: False leaves them unused. postings, by_column: the index, and the matrix by
    columns, where the export has one.
    early: postings that may be read for a user, for answers that may lack items; None: answers are exact.
    index: False neither uses nor builds one for exact answers.
    """

    def __init__(
        self,
        matrix: sp.csr_matrix,
        gains: np.ndarray,
        threads: int | None = None,
        *,
        kernels: bool = True,
        postings: Postings | None = None,
        by_column: sp.csr_matrix | None = None,
        early: int | None = None,
        index: bool = True,
    ) -> None:
        self.matrix, self.gains = matrix, gains
        self.compiled = kernels and available(matrix)
        lengths = None if postings is None else postings.column_lengths
        self._sweep = Sweep(matrix, gains, threads, by_column, lengths) if self.compiled else None
        self._early, self._saved, self._building = early, 0.0, threading.Lock()
        self._pays = index and pays(matrix)
        self._index = None if postings is None or not index else self._from(postings)

    def _from(self, postings: Postings) -> Impacts:
        return Impacts(self.matrix, self.gains, postings, kernels=self.compiled)

    @property
    def wants(self) -> bool:
        """Whether queries would come to use an index."""
        return self._early is not None or (self.compiled and self._pays)

    @property
    def indexed(self) -> bool:
        """Whether the index is there."""
        return self._index is not None

    def prepare(self) -> None:
        """Build now what queries would build when it pays."""
        if self.wants:
            self._built()
        if self._sweep:
            self._sweep.prepare(turn=not self.wants)

    def _built(self) -> Impacts:
        with self._building:
            if self._index is None:
                self._index = self._from(build(self.matrix, self.gains, kernels=self.compiled))
            return self._index

    def top(self, users: sp.csr_matrix, histories: sp.csr_matrix, k: int, choice: Choice) -> Found:
        """The best `k` items of each user that are a choice and not in the history.

        Args:
            users: float32 CSR [B, D], columns rising. histories: CSR [B, items], rows rising. k: at most the items.

        Returns:
            Rows int64 and scores float32, [B, k], best first; −1 and −inf where a user has fewer items.
        """
        if choice.only is not None:
            return self._among(choice.only, users, histories, k)
        index = self._built() if self._early is not None else self._worth(users, k)
        if index is not None:
            found = [
                index.top(users[b], _row(histories, b), k, choice.blocked, self._early) for b in range(users.shape[0])
            ]
            return np.stack([rows for rows, _, _ in found]), np.stack([scores for _, scores, _ in found])
        if self._sweep:
            return self._sweep.top(users, histories, k, choice.blocked)
        scores = (users @ self._by_column).toarray()
        scores *= self.gains
        if choice.blocked is not None:
            scores[:, choice.blocked != 0] = -np.inf
        return _best(scores, histories, k)

    def _worth(self, users: sp.csr_matrix, k: int) -> Impacts | None:
        """The index, if it is the way to take."""
        items, nnz = self.matrix.shape[0], self.matrix.nnz
        if not self._sweep or not (self._pays or self._index) or users.nnz == 0 or k * LONG > items:
            return None
        own = self._sweep.entries(users)
        whole = -(-users.shape[0] // LANES) * nnz
        if self._index is None or self._sweep.turned:
            whole = min(whole, own)
        ours = READ * own + LONG * READ * users.nnz * -(-items // RANGE)
        saved = whole - ours
        if saved <= 0:
            return None
        if self._index is None:
            self._saved += saved
            if self._saved < BUILDING * nnz:
                return None
        return self._built()

    @cached_property
    def _by_column(self) -> sp.csr_matrix:
        return self.matrix.T.tocsr()

    def _among(self, only: np.ndarray, users: sp.csr_matrix, histories: sp.csr_matrix, k: int) -> Found:
        """The best of few rows, filled up to k."""
        count = users.shape[0]
        top, best = np.full((count, k), -1, np.int64), np.full((count, k), -np.inf, np.float32)
        few = min(k, len(only))
        if few:
            scores = (users @ self.matrix[only].T).toarray()
            scores *= self.gains[only]
            found, best[:, :few] = _best(scores, histories[:, only], few)
            top[:, :few] = np.where(found >= 0, only[found], -1)
        return top, best


def _row(histories: sp.csr_matrix, b: int) -> np.ndarray:
    return histories.indices[histories.indptr[b] : histories.indptr[b + 1]]


def _best(scores: np.ndarray, histories: sp.csr_matrix, k: int) -> Found:
    """The best of scores [B, items] that are not in the histories; the scores are overwritten."""
    scores[owners(histories), histories.indices] = -np.inf
    return top_k(scores, k)
