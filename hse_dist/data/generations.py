"""Which item has which row when a catalogue grows and shrinks, and since when.

In: the rows of a prepared version, and the items of the next one. Out: their rows. Items that are still there keep
theirs; the rows of those that are not are taken by new items, the most frequent first, and then there are rows behind.
A row whose item is gone and that nobody has taken is evicted: its item's id stays in the vocabulary, without a count.

`since` is the version in which a row got the item that it has, or lost it. So (row, since) is an item for ever, while a
row number alone is not: whoever knows a table of version v takes rows with `since > v` for other rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Generations:
    """Of every row: int64 [rows] the version since which it is what it is, and bool [rows] whether it has no item."""

    since: np.ndarray
    evicted: np.ndarray

    @classmethod
    def first(cls, rows: int) -> Generations:
        """Those of a version that extends none."""
        return cls(np.zeros(rows, np.int64), np.zeros(rows, bool))


def next_rows(
    before: Generations, places: np.ndarray, counts: np.ndarray, used: np.ndarray, version: int
) -> tuple[np.ndarray, Generations]:
    """The row of each item of the next version, int32 [items] (−1: none), and the generations of all rows.

    Args:
        places: int64 [rows of before], where each row's item is among the items now; −1: it is gone.
        counts: int64 [items], by which new items are ordered; ties go by item.
        used: bool [items], whether a user has the item; those that have a row keep it in any case.
        version: of the rows to come.
    """
    here = places >= 0
    rows = np.full(len(counts), -1, np.int32)
    rows[places[here]] = np.flatnonzero(here)
    order = np.argsort(-counts, kind="stable")
    new = order[used[order] & (rows[order] < 0)]
    free, total = np.flatnonzero(~here), len(places)
    rows[new] = np.concatenate([free, np.arange(total, total + max(len(new) - len(free), 0))])[: len(new)]
    size = max(total, int(rows.max(initial=-1)) + 1)
    since, evicted = np.full(size, version, np.int64), np.ones(size, bool)
    evicted[rows[rows >= 0]] = False
    # what is as it was: an item that stayed, and a row that had none and has none
    kept = np.concatenate([np.where(here, ~before.evicted, before.evicted), np.zeros(size - total, bool)])
    kept[rows[new]] = False
    since[kept] = before.since[kept[:total]]
    return rows, Generations(since, evicted)


def stale(latest: np.ndarray, span: float) -> np.ndarray:
    """Whether the latest time of each item is more than `span` before the latest of all, bool [items]."""
    mask: np.ndarray = latest < latest.max() - span
    return mask
