"""What `Recommender` answers.

In: raw ids, scores and, where they were asked for, reasons. Out: plain Python, ready for JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reason:
    """A column that an item shares with the history, and what it adds to the score.

    Attributes:
        contribution: gain of the item × sum of the history, and of the user's features, in this column × the item's
            value in it; an item of the history gets nothing from itself.
        items: the items of the history that are live in this column (but the item itself), raw ids, those that add
            most first; no more of them than were asked for. What features add has no names here: a column without
            items is theirs alone.
    """

    column: int
    contribution: float
    items: list[Any]


@dataclass(frozen=True)
class Recommendation:
    """`items` (raw ids, best first) with `scores`, and the ids of the history that the export does not know.

    Attributes:
        reasons: of each item all the columns that made its score, those that made most of it first; the contributions
            add up to the score (to the rounding of float32). None: they were not asked for.
        unknown_features: values of the user that the export does not know, by feature; features without any are left
            out.
    """

    items: list[Any]
    scores: list[float]
    unknown: list[Any]
    reasons: list[list[Reason]] | None = None
    unknown_features: dict[str, list[Any]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        return zip(self.items, self.scores, strict=True)

    def __len__(self) -> int:
        return len(self.items)
