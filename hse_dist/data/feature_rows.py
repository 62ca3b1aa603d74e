"""Where the rows of features stand in the one table that all logical tables share.

In: the prepared data and the features that have a table. Out: the table rows of every feature, and of each item those
of its features. The rows of all logical tables are ranges of one packed table, since they have the same columns: items
first, then the features of users, then those of items. So one budget is shared by construction, and sharding,
rewiring and checkpoints see one table.

    items | features of users, in the order of the settings | features of items, in that order
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hse_dist.data.lists import Lists, no_lists, take_lists
from hse_dist.data.prepared import HistoryBlock, Prepared


@dataclass(frozen=True)
class FeatureRows:
    """Attributes:
    items: item rows, the first ones of the table.
    users, of_items: names of the features of users and of items.
    first: int64 [features + 1], the first table row of each feature in that order; the last number is `rows`.
    sides: table rows of each item's features.
    """

    items: int
    users: tuple[str, ...]
    of_items: tuple[str, ...]
    first: np.ndarray
    sides: Lists

    @classmethod
    def of(cls, prepared: Prepared, tables: Iterable[str]) -> FeatureRows:
        """Those of these tables' features.

        Raises:
            DataError: the folder has no such feature, or a file of it is damaged.
        """
        wanted = {prepared.feature(name).name for name in tables}
        names = [name for name in prepared.features if name in wanted]
        users = tuple(name for name in names if prepared.features[name].of == "user")
        of_items = tuple(name for name in names if prepared.features[name].of == "item")
        sizes = [prepared.features[name].rows for name in (*users, *of_items)]
        first = prepared.items + np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        lists = [prepared.item_features(name) for name in of_items]
        sides = join(lists, first[len(users) : len(users) + len(of_items)], prepared.items)
        return cls(prepared.items, users, of_items, first, sides)

    @property
    def names(self) -> tuple[str, ...]:
        """All features, in the order of their rows."""
        return (*self.users, *self.of_items)

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return int(self.first[-1])

    def feature_of(self, rows: np.ndarray) -> np.ndarray:
        """The place in `names` of the feature that has these table rows, int64 [n]; −1 for items."""
        found: np.ndarray = np.searchsorted(self.first, rows, side="right") - 1
        return found

    def context(self, block: HistoryBlock) -> Lists:
        """The table rows of each user's features; none where the block knows none."""
        known = [block.features.get(name, no_lists(len(block))) for name in self.users]
        return join(known, self.first[: len(self.users)], len(block))

    def sides_of(self, items: np.ndarray) -> Lists:
        """The table rows of the features of these items."""
        return take_lists(*self.sides, items)

    def counts(self, prepared: Prepared) -> np.ndarray:
        """What each row of the table was counted, int64 [rows]: of items and users interactions, of values users or
        items."""
        return np.concatenate([prepared.counts(), *(prepared.feature_counts(name) for name in self.names)])

    def tables(self) -> dict[str, tuple[int, int]]:
        """The table rows of each logical table, items first: (first, last), `last` excluded."""
        bounds = [int(row) for row in self.first]
        return {"item": (0, self.items), **dict(zip(self.names, pairwise(bounds), strict=True))}


def join(lists: list[Lists], first: np.ndarray, count: int) -> Lists:
    """The members of several lists of each of `count` owners, those of the k-th lists counted from `first[k]` on."""
    if not lists:
        return no_lists(count)
    owners = np.concatenate([np.repeat(np.arange(count), np.diff(offsets)) for offsets, _ in lists])
    members = np.concatenate([rows + start for (_, rows), start in zip(lists, first, strict=True)])
    order = np.argsort(owners, kind="stable")
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))]), members[order]
