"""Which items may be an answer.

In: rows of an allow and of a deny list, and whether items of the history may come back. Out: a `Choice` for the ways
that score: few rows, which are scored alone, or a mask, which is looked at for the few items whose scores are good
enough. An item is an answer if it is on the allow list, where there is one, and not on the deny list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEW = 64
"""An allow list of up to 1 / `FEW` of the items is scored alone; with a longer one all are, in order."""


@dataclass(frozen=True)
class Choice:
    """Attributes:
    seen: items of the history may be answers.
    only: the rows that may be answers, rising; None: see `blocked`.
    blocked: uint8 [items], 1 where an item may not be an answer; None: all may.
    """

    seen: bool = False
    only: np.ndarray | None = None
    blocked: np.ndarray | None = None

    def allows(self, rows: np.ndarray) -> np.ndarray:
        """Which of these rows may be answers, bool."""
        if self.only is not None:
            place = np.searchsorted(self.only, rows)
            return np.append(self.only, -1)[place] == rows
        return np.ones(len(rows), bool) if self.blocked is None else self.blocked[rows] == 0


ALL = Choice()


def choose(items: int, *, seen: bool, allow: np.ndarray | None, deny: np.ndarray | None) -> Choice:
    """The choice among so many items; `allow` and `deny` are rows in any order, −1 among them is no item."""
    denied = np.unique(deny[deny >= 0]) if deny is not None else np.zeros(0, np.int64)
    if allow is not None:
        only = np.setdiff1d(allow[allow >= 0], denied)
        if len(only) * FEW <= items or len(only) == 0:
            return Choice(seen, only)
        blocked = np.ones(items, np.uint8)
        blocked[only] = 0
        return Choice(seen, None, blocked)
    if len(denied) == 0:
        return Choice(seen)
    blocked = np.zeros(items, np.uint8)
    blocked[denied] = 1
    return Choice(seen, None, blocked)
