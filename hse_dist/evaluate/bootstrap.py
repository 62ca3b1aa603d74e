"""Is one model better than another on the same users? A paired bootstrap of the mean difference.

In: a metric of the same users under two models, for one seed or several. Out: the difference and its interval.

Why paired: users differ far more from each other than two models differ on one user. Why within seeds: the number
claimed is the mean over seeds of each seed's mean, so users are drawn again within each seed, which keeps its weight.
The interval is the percentile interval (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). It
says how sure the difference is over users; seeds are taken as given, and a user in two seeds counts as two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hse_dist.errors import DataError
from hse_dist.evaluate.metrics import METRICS, read_users

DRAWS_AT_A_TIME = 2**22
"""Users drawn at a time; bounds memory, not the result's precision."""


@dataclass(frozen=True)
class Difference:
    """Mean of `ours - theirs` with the interval `low … high`, over `users` users of all seeds together."""

    difference: float
    low: float
    high: float
    users: int


def paired_bootstrap(
    ours: Sequence[npt.ArrayLike],
    theirs: Sequence[npt.ArrayLike],
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """The difference of two models and its bootstrap interval.

    Args:
        ours, theirs: one array `[users]` a seed, the same users in the same order.
        resamples: bootstrap samples.
        level: share of the samples inside the interval.
        seed: of the random draws; the same seed gives the same interval.

    Raises:
        DataError: the arrays do not fit together, or are empty.
    """
    if not 0.0 < level < 1.0 or resamples < 1:
        raise ValueError(f"level = {level} must be in (0, 1) and resamples = {resamples} at least 1")
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(ours, theirs, strict=False)]
    if not pairs or len(ours) != len(theirs) or any(a.shape != b.shape or a.ndim != 1 or not len(a) for a, b in pairs):
        raise DataError(
            "The two models have no values of the same users to compare.",
            cause=f"Users a seed: {[np.size(a) for a in ours]} and {[np.size(b) for b in theirs]}.",
        )
    generator = np.random.default_rng(seed)
    differences = [a - b for a, b in pairs]
    means = np.mean([_resampled_means(d, resamples, generator) for d in differences], axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    total = sum(len(d) for d in differences)
    return Difference(float(np.mean([d.mean() for d in differences])), float(low), float(high), total)


def _resampled_means(values: npt.NDArray[np.float64], resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Means of `resamples` draws of all users with replacement."""
    step = max(1, DRAWS_AT_A_TIME // len(values))
    means = np.empty(resamples)
    for first in range(0, resamples, step):
        size = (min(step, resamples - first), len(values))
        means[first : first + step] = values[generator.integers(len(values), size=size)].mean(axis=1)
    return means


def compare(
    ours: Sequence[str | Path],
    theirs: Sequence[str | Path],
    metric: str,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """`paired_bootstrap` of files that `write_users` wrote, one a seed.

    Raises:
        DataError: a file cannot be read, or two files are not about the same users.
    """
    if metric not in METRICS:
        raise DataError(f"There is no metric {metric!r}.", cause=f"There are {', '.join(METRICS)}.")
    columns: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for path_a, path_b in zip(ours, theirs, strict=False):
        (users_a, a), (users_b, b) = read_users(path_a), read_users(path_b)
        if not users_a.equals(users_b):
            raise DataError(f"{path_a} and {path_b} are not about the same users.", cause="Compare runs of one split.")
        columns[0].append(a[metric])
        columns[1].append(b[metric])
    if len(ours) != len(theirs):
        raise DataError(f"{len(ours)} files are to be compared with {len(theirs)}.", cause="Give one of each a seed.")
    return paired_bootstrap(*columns, resamples=resamples, level=level, seed=seed)
