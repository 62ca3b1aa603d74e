"""Recommendations from an export alone.

In: an export folder and histories of raw item ids, and what else is known of the users. Out: items that are not in the
history, best first, with scores.

With the rows A and gains g of the export: u = Σ_{i in history} A_i, score_j = g_j · (u · A_j); of u the strongest
entries alone if the export says how many. Rows of the user's features are added to u where the export has any. The
model's second term takes back what an item gives itself, which concerns items of the history only, and these are
recommended only if they are asked for (`own.py`).

How items are scored and chosen is up to `search.py`; all ways give the same numbers, bit by bit. Without compiled
kernels users are taken in blocks that bound the scores, users × items. A user's answer does not depend on the block,
and any number of threads may ask. Only NumPy, SciPy and PyArrow are imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from hse_dist.errors import ConfigError
from hse_dist.export.choice import ALL, Choice, choose
from hse_dist.export.context import Context, Contexts, Features
from hse_dist.export.delta import apply_delta, load_delta
from hse_dist.export.explain import reasons
from hse_dist.export.format import Export, load_export
from hse_dist.export.ids import Ids, as_array
from hse_dist.export.own import own_scores, with_own
from hse_dist.export.recommendation import Reason, Recommendation
from hse_dist.export.search import Search

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
        early: postings of the index that may be read for a user; answers take less time and may lack items, scores are
            right. None: answers are exact.
        index: False saves the memory of an index, and exact answers to single users take longer.

    Attributes:
        item_ids: raw ids `[items]`, an Arrow array.
        version: names the content: equal for exports that answer the same.
        features: names of the features of users that may be told; contexts: their values.
    """

    def __init__(
        self,
        export: Export,
        threads: int | None = None,
        *,
        kernels: bool = True,
        early: int | None = None,
        index: bool = True,
    ) -> None:
        if early is not None and early < 0:
            raise ConfigError(f"early = {early} is out of range: it is a number of postings.")
        self._export, self.item_ids = export, export.item_ids
        self._options: dict[str, Any] = {"threads": threads, "kernels": kernels, "early": early, "index": index}
        self._ids = Ids(export.item_ids, export.order)
        self.contexts = Contexts(export.features)
        self.features = self.contexts.names
        self._matrix, self._gains = export.matrix, export.gains
        self._user_entries: int | None = export.manifest.get("user_entries")
        made = {"postings": export.postings, "by_column": export.by_column}
        self._search = Search(export.matrix, export.gains, threads, kernels=kernels, early=early, index=index, **made)

    @cached_property
    def version(self) -> str:
        return self._export.content

    @classmethod
    def load(
        cls, folder: str | Path, threads: int | None = None, *, early: int | None = None, verify: bool = True
    ) -> Self:
        """Raises ExportError: see `load_export`, also for `verify`. ConfigError: `early` is negative."""
        return cls(load_export(folder, verify=verify), threads, early=early)

    def update(self, delta: str | Path) -> Self:
        """The recommender of the export that a delta makes of this one, which goes on as it is.

        What this one has prepared, the new one has too.

        Raises:
            ExportError: the delta belongs to another export, or is unfit; or this export has features.
        """
        updated = type(self)(apply_delta(self._export, load_delta(delta)), **self._options)
        if self._prepared:
            updated.prepare()
        return updated

    @property
    def _prepared(self) -> bool:
        return self._ids.ordered and (self._search.indexed or not self._search.wants)

    def prepare(self) -> None:
        """Build now what is otherwise built when it has paid: the index, and the order of the ids."""
        self._ids.prepare()
        self.contexts.prepare()
        self._search.prepare()

    def recommend(
        self,
        history: Iterable[Any],
        k: int = 10,
        *,
        features: Features | None = None,
        seen: bool = False,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        explain: bool = False,
        reason_items: int | None = None,
    ) -> Recommendation:
        """At most `k` items for one history of raw ids; without a known id in it there are none, unless `features` has
        a known value.

        Args:
            features: what is known of the user, by name: raw values, one or several. Values that the export does not
                know change nothing, and are told.
            seen: items of the history may be recommended too; their scores are without what they give themselves.
            allow, deny: raw ids, the only ones that may be recommended, and those that may not. Unknown ones among them
                mean nothing; an empty allow list gives nothing.
            explain: say which columns made the scores (`Recommendation.reasons`).
            reason_items: items of the history that a reason names at most; None: all.

        Raises:
            ConfigError: k is not positive, or there is no such feature.
        """
        options: dict[str, Any] = {"explain": explain, "reason_items": reason_items, "features": [features]}
        return self.recommend_batch([history], k, seen=seen, allow=allow, deny=deny, **options)[0]

    def recommend_batch(
        self,
        histories: Iterable[Iterable[Any]],
        k: int = 10,
        *,
        features: Iterable[Features | None] | None = None,
        seen: bool = False,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        explain: bool = False,
        reason_items: int | None = None,
    ) -> list[Recommendation]:
        """`recommend` for several histories at once, which share the other arguments.

        Args:
            features: of each user, or None; without it none are known.

        Raises:
            ConfigError: k is not positive, there is no such feature, or the features are of more or fewer users.
        """
        asked = [list(history) for history in histories]
        context, strange = self.contexts.of([None] * len(asked) if features is None else features)
        ids = [item for history in asked for item in history]
        rows = self.rows_of(as_array(ids, self.item_ids.type))
        known = rows >= 0
        owner = np.repeat(np.arange(len(asked)), [len(history) for history in asked])
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[known], minlength=len(asked)))])
        choice = self.choice(seen=seen, allow=allow, deny=deny)
        top, scores = self.recommend_rows(offsets, rows[known], k, choice, context)
        unknown: list[list[Any]] = [[] for _ in asked]
        for place in np.flatnonzero(~known).tolist():
            unknown[owner[place]].append(ids[place])
        answers = []
        for b in range(len(asked)):
            items, best = self._named(top[b], scores[b])
            why = None
            if explain:
                history = np.unique(rows[known][offsets[b] : offsets[b + 1]])
                why = self._reasons(top[b], history, context.between(b, b + 1), reason_items)
            answers.append(Recommendation(items, best, unknown[b], why, strange[b]))
        return answers

    def context(self, features: Iterable[Features | None]) -> Context:
        """What `recommend_rows` takes: of each user what is known, or None.

        Raises:
            ConfigError: there is no such feature.
        """
        return self.contexts.of(features)[0]

    def choice(
        self, *, seen: bool = False, allow: Iterable[Any] | None = None, deny: Iterable[Any] | None = None
    ) -> Choice:
        """What `recommend_rows` takes, made once for many calls; the arguments are those of `recommend`."""
        lists = (
            None if ids is None else self.rows_of(as_array(list(ids), self.item_ids.type)) for ids in (allow, deny)
        )
        allowed, denied = lists
        return choose(len(self.item_ids), seen=seen, allow=allowed, deny=denied)

    def _named(self, top: np.ndarray, scores: np.ndarray) -> tuple[list[Any], list[float]]:
        some = top >= 0
        return self.item_ids.take(pa.array(top[some])).to_pylist(), scores[some].tolist()

    def _reasons(self, top: np.ndarray, history: np.ndarray, context: Context, most: int | None) -> list[list[Reason]]:
        _, user = self._pool(np.array([0, len(history)]), history, context)
        return reasons(self._matrix, self._gains, user, history, top[top >= 0], self.item_ids, most)

    def rows_of(self, ids: pa.Array) -> np.ndarray:
        """The item rows of raw ids, int64; -1 for null and for what the export does not know."""
        return self._ids.rows_of(ids)

    def recommend_rows(
        self, offsets: np.ndarray, rows: np.ndarray, k: int, choice: Choice = ALL, context: Context | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items of B histories that are given as item rows.

        Args:
            offsets, rows: int64 `[B + 1]`, `[L]`; an item may stand twice in a history and counts once.
            choice: the items that may be answers; see `choice`.
            context: rows of the users' features; see `context`. None: none are known.

        Returns:
            Item rows int64 and scores float32, `[B, min(k, items)]`; -1 and -inf beyond a user's items, and in the
            whole line of a user of whom nothing is known.

        Raises:
            ConfigError: k is not positive, or the context is of more or fewer users.
        """
        if k < 1:
            raise ConfigError(f"k = {k} is out of range: at least one item must be asked for.")
        if context is not None and len(context) != len(offsets) - 1:
            raise ConfigError(f"There are {len(offsets) - 1} histories, and features of {len(context)} users.")
        k = min(k, len(self.item_ids))
        users = len(offsets) - 1
        top, scores = np.full((users, k), -1, np.int64), np.full((users, k), -np.inf, np.float32)
        step = USERS_AT_A_TIME if self._search.compiled else max(1, SCORES_AT_A_TIME // len(self.item_ids))
        for first in range(0, users, step):
            part = slice(first, min(first + step, users))
            ends = offsets[part.start : part.stop + 1]
            beside = None if context is None else context.between(part.start, part.stop)
            top[part], scores[part] = self._rank(ends - ends[0], rows[ends[0] : ends[-1]], k, choice, beside)
        empty = np.diff(offsets) == 0
        if context is not None:
            empty &= np.diff(context.offsets) == 0
        top[empty], scores[empty] = -1, -np.inf
        return top, scores

    def _pool(
        self, offsets: np.ndarray, rows: np.ndarray, context: Context | None
    ) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Histories [B, items] with each item once, and the users' vectors [B, D], both with rising columns."""
        ones = np.ones(len(rows), np.float32)
        histories = sp.csr_matrix((ones, rows, offsets), shape=(len(offsets) - 1, len(self.item_ids)), copy=True)
        histories.sum_duplicates()
        histories.data[:] = 1
        pooled = histories @ self._matrix
        # SciPy leaves the columns of a product in any order; in ascending order every sum is taken the same way
        pooled.sort_indices()
        if context is not None:
            pooled = self.contexts.added(pooled, context)
        return histories, pooled if self._user_entries is None else strongest(pooled, self._user_entries)

    def _rank(
        self, offsets: np.ndarray, rows: np.ndarray, k: int, choice: Choice, context: Context | None
    ) -> tuple[np.ndarray, np.ndarray]:
        histories, pooled = self._pool(offsets, rows, context)
        found = self._search.top(pooled, histories, k, choice)
        if choice.seen:
            found = with_own(found, own_scores(self._matrix, self._gains, pooled, histories), histories, choice)
        return found


def strongest(users: sp.csr_matrix, count: int) -> sp.csr_matrix:
    """The `count` entries of each row that are largest in size; of equal ones the lower column stays."""
    owner = np.repeat(np.arange(users.shape[0]), np.diff(users.indptr))
    order = np.lexsort((users.indices, -np.abs(users.data), owner))
    kept = np.sort(order[np.arange(len(order)) - users.indptr[owner] < count])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[kept], minlength=users.shape[0]))])
    return sp.csr_matrix((users.data[kept], users.indices[kept], offsets), shape=users.shape)
