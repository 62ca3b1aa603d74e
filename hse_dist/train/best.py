"""Which checkpoint is the best one: the start, until a later one is surely better.

In: a metric of the validation users, validation by validation. Out: whether the table of now takes the place of the
best one, and when there have been too many validations without progress.

The highest of many means over the same few users is partly luck: it ranks lower on others. So the best table stays
until another is better by more than `better_by` standard errors of the mean difference over the users, both tables on
the same ones (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3, for trees of different size).
Patience asks for less, since progress may come in small steps: the highest mean so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def surely_better(new: Floats, old: Floats, errors: float) -> bool:
    """Whether the mean of `new - old` is above 0, and above so many of its standard errors; both `[users]`."""
    difference = new - old
    mean, spread = float(difference.mean()), float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    return mean > 0.0 and mean > errors * spread / len(difference) ** 0.5


@dataclass
class Best:
    """What is known of the validations so far.

    Attributes:
        errors: `train.better_by`.
        highest: mean. worse: validations since then. users: the metric of the best table's users, float64 [users].
    """

    errors: float
    highest: float = float("-inf")
    worse: int = 0
    users: Floats = field(default_factory=lambda: np.empty(0))

    def judge(self, users: Floats) -> bool:
        """Take in a validation; whether its table is the best one now."""
        mean = float(users.mean())
        self.worse = 0 if mean > self.highest else self.worse + 1
        self.highest = max(self.highest, mean)
        if len(self.users) and not surely_better(users, self.users, self.errors):
            return False
        self.users = users
        return True

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of it, beside `users`."""
        return {"best": self.highest if len(self.users) else None, "worse": self.worse}

    def load(self, facts: Mapping[str, Any], users: Floats | None) -> None:
        """Go on from what a checkpoint says; one of format 3 does not know its best table's users, so that the next
        validation is taken, which counts only if its mean is above all that were taken before."""
        self.highest = float("-inf") if facts["best"] is None else facts["best"]
        self.worse, self.users = facts["worse"], np.empty(0) if users is None else users
