"""Recommendations from an export alone.

In: an export folder and histories of raw item ids. Out: items that are not in the history, best first, with scores.

With the rows A and gains g of the export: u = Σ_{i in history} A_i, score_j = g_j · (u · A_j); of u the strongest
entries alone if the export says how many. The model's second term takes back what an item gives itself, which concerns
items of the history only, and these are recommended only if they are asked for (`own.py`).

Compiled kernels score and choose in one sweep (`sweep.py`) where they were built. Without them both products are
SciPy's: u holds a part of the columns, and a column is live in few items, so u·Aᵀ visits far less than every live
entry; users are then taken in blocks that bound the scores, users × items. Both give the same numbers, bit by bit, and
a user's answer does not depend on the block. Only NumPy, SciPy and PyArrow are imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from hse_dist.errors import ConfigError
from hse_dist.export.choice import ALL, Choice, choose
from hse_dist.export.explain import reasons
from hse_dist.export.format import Export, load_export
from hse_dist.export.own import own_scores, owners, with_own
from hse_dist.export.recommendation import Recommendation
from hse_dist.export.sweep import Sweep, available
from hse_dist.export.topk import top_k

SCORES_AT_A_TIME = 2**23
"""Users × items of a block of the plain path; a score takes up to 30 bytes on its way (sparse, dense, as a key to sort
by)."""
USERS_AT_A_TIME = 1024
"""Users of a block of the compiled path, which holds no scores."""


class Recommender:
    """Answers from an export.

    Args:
        threads: of the compiled kernels; None: all cores that this process may use.
        kernels: False leaves them unused.

    Attributes:
        item_ids: raw ids `[items]`, an Arrow array.
        version: names the content: equal for exports that answer the same.
    """

    def __init__(self, export: Export, threads: int | None = None, *, kernels: bool = True) -> None:
        self._export, self.item_ids = export, export.item_ids
        self._matrix, self._gains = export.matrix, export.gains
        self._user_entries: int | None = export.manifest.get("user_entries")
        self._sweep = Sweep(export.matrix, export.gains, threads) if kernels and available(export.matrix) else None

    @cached_property
    def version(self) -> str:
        return self._export.content

    @cached_property
    def _by_column(self) -> sp.csr_matrix:
        return self._matrix.T.tocsr()

    @classmethod
    def load(cls, folder: str | Path, threads: int | None = None) -> Self:
        """Raises ExportError: see `load_export`."""
        return cls(load_export(folder), threads)

    def recommend(
        self,
        history: Iterable[Any],
        k: int = 10,
        *,
        seen: bool = False,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        explain: bool = False,
    ) -> Recommendation:
        """At most `k` items for one history of raw ids; without a known id in it there are none.

        Args:
            seen: items of the history may be recommended too; their scores are without what they give themselves.
            allow, deny: raw ids, the only ones that may be recommended, and those that may not. Unknown ones among them
                mean nothing; an empty allow list gives nothing.
            explain: say which columns made the scores (`Recommendation.reasons`).

        Raises:
            ConfigError: k is not positive.
        """
        return self.recommend_batch([history], k, seen=seen, allow=allow, deny=deny, explain=explain)[0]

    def recommend_batch(
        self,
        histories: Iterable[Iterable[Any]],
        k: int = 10,
        *,
        seen: bool = False,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        explain: bool = False,
    ) -> list[Recommendation]:
        """`recommend` for several histories at once, which share the other arguments.

        Raises:
            ConfigError: k is not positive.
        """
        asked = [list(history) for history in histories]
        ids = [item for history in asked for item in history]
        rows = self.rows_of(_as_array(ids, self.item_ids.type))
        known = rows >= 0
        owner = np.repeat(np.arange(len(asked)), [len(history) for history in asked])
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[known], minlength=len(asked)))])
        choice = self.choice(seen=seen, allow=allow, deny=deny)
        top, scores = self.recommend_rows(offsets, rows[known], k, choice)
        unknown: list[list[Any]] = [[] for _ in asked]
        for place in np.flatnonzero(~known).tolist():
            unknown[owner[place]].append(ids[place])
        return [
            self._answer(top[b], scores[b], unknown[b], rows[known][offsets[b] : offsets[b + 1]] if explain else None)
            for b in range(len(asked))
        ]

    def choice(
        self, *, seen: bool = False, allow: Iterable[Any] | None = None, deny: Iterable[Any] | None = None
    ) -> Choice:
        """What `recommend_rows` takes, made once for many calls; the arguments are those of `recommend`."""
        lists = (
            None if ids is None else self.rows_of(_as_array(list(ids), self.item_ids.type)) for ids in (allow, deny)
        )
        allowed, denied = lists
        return choose(len(self.item_ids), seen=seen, allow=allowed, deny=denied)

    def _answer(
        self, top: np.ndarray, scores: np.ndarray, unknown: list[Any], history: np.ndarray | None
    ) -> Recommendation:
        some = top >= 0
        items, why = self.item_ids.take(pa.array(top[some])).to_pylist(), None
        if history is not None:
            distinct = np.unique(history)
            _, user = self._pool(np.array([0, len(distinct)]), distinct)
            why = reasons(self._matrix, self._gains, user, distinct, top[some], self.item_ids)
        return Recommendation(items, scores[some].tolist(), unknown, why)

    def rows_of(self, ids: pa.Array) -> np.ndarray:
        """The item rows of raw ids, int64; -1 for null and for what the export does not know."""
        if 20 * len(ids) < len(self.item_ids):
            # a table of few ids that all items are looked up in is made faster than a table of all items
            distinct = ids.unique()
            places = pc.index_in(self.item_ids, value_set=distinct)
            row_of = np.full(len(distinct), -1, np.int64)
            row_of[places.drop_null().to_numpy()] = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
            return row_of[pc.index_in(ids, value_set=distinct).to_numpy()]
        return pc.index_in(ids, value_set=self.item_ids).fill_null(-1).to_numpy().astype(np.int64)

    def recommend_rows(
        self, offsets: np.ndarray, rows: np.ndarray, k: int, choice: Choice = ALL
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items of B histories that are given as item rows.

        Args:
            offsets, rows: int64 `[B + 1]`, `[L]`; an item may stand twice in a history and counts once.
            choice: the items that may be answers; see `choice`.

        Returns:
            Item rows int64 and scores float32, `[B, min(k, items)]`; -1 and -inf beyond a user's items, and in the
            whole line of an empty history.

        Raises:
            ConfigError: k is not positive.
        """
        if k < 1:
            raise ConfigError(f"k = {k} is out of range: at least one item must be asked for.")
        k = min(k, len(self.item_ids))
        users = len(offsets) - 1
        top, scores = np.full((users, k), -1, np.int64), np.full((users, k), -np.inf, np.float32)
        step = USERS_AT_A_TIME if self._sweep else max(1, SCORES_AT_A_TIME // len(self.item_ids))
        for first in range(0, users, step):
            part = slice(first, min(first + step, users))
            ends = offsets[part.start : part.stop + 1]
            top[part], scores[part] = self._rank(ends - ends[0], rows[ends[0] : ends[-1]], k, choice)
        empty = np.diff(offsets) == 0
        top[empty], scores[empty] = -1, -np.inf
        return top, scores

    def _pool(self, offsets: np.ndarray, rows: np.ndarray) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Histories [B, items] with each item once, and the users' vectors [B, D], both with rising columns."""
        ones = np.ones(len(rows), np.float32)
        histories = sp.csr_matrix((ones, rows, offsets), shape=(len(offsets) - 1, len(self.item_ids)), copy=True)
        histories.sum_duplicates()
        histories.data[:] = 1
        pooled = histories @ self._matrix
        # SciPy leaves the columns of a product in any order; in ascending order every sum is taken the same way
        pooled.sort_indices()
        return histories, pooled if self._user_entries is None else strongest(pooled, self._user_entries)

    def _rank(self, offsets: np.ndarray, rows: np.ndarray, k: int, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
        histories, pooled = self._pool(offsets, rows)
        if choice.only is not None:
            found = self._among(choice.only, pooled, histories, k)
        elif self._sweep:
            found = self._sweep.top(pooled, histories, k, choice.blocked)
        else:
            scores = (pooled @ self._by_column).toarray()
            scores *= self._gains
            if choice.blocked is not None:
                scores[:, choice.blocked != 0] = -np.inf
            found = _best(scores, histories, k)
        if choice.seen:
            found = with_own(found, own_scores(self._matrix, self._gains, pooled, histories), histories, choice)
        return found

    def _among(
        self, only: np.ndarray, pooled: sp.csr_matrix, histories: sp.csr_matrix, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best of few rows, padded to k."""
        users = pooled.shape[0]
        top, best = np.full((users, k), -1, np.int64), np.full((users, k), -np.inf, np.float32)
        few = min(k, len(only))
        if few:
            scores = (pooled @ self._matrix[only].T).toarray()
            scores *= self._gains[only]
            found, best[:, :few] = _best(scores, histories[:, only], few)
            top[:, :few] = np.where(found >= 0, only[found], -1)
        return top, best


def _best(scores: np.ndarray, histories: sp.csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best of scores [B, items] that are not in the histories; the scores are overwritten."""
    scores[owners(histories), histories.indices] = -np.inf
    return top_k(scores, k)


def strongest(users: sp.csr_matrix, count: int) -> sp.csr_matrix:
    """The `count` entries of each row that are largest in size; of equal ones the lower column stays."""
    owner = np.repeat(np.arange(users.shape[0]), np.diff(users.indptr))
    order = np.lexsort((users.indices, -np.abs(users.data), owner))
    kept = np.sort(order[np.arange(len(order)) - users.indptr[owner] < count])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[kept], minlength=users.shape[0]))])
    return sp.csr_matrix((users.data[kept], users.indices[kept], offsets), shape=users.shape)


def _as_array(ids: list[Any], kind: pa.DataType) -> pa.Array:
    """Raw ids in the export's type; what does not convert becomes null, as it cannot be an item."""
    try:
        return pa.array(ids, kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.concat_arrays([_as_scalar(item, kind) for item in ids])


def _as_scalar(item: Any, kind: pa.DataType) -> pa.Array:
    try:
        return pa.array([item], kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.nulls(1, kind)
