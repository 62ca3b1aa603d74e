"""Soft thresholding: what stays gives up as much as the last entry that went had.

In: a block of rows, the slots about to become free, and the threshold of all rows. Out: smaller values, in place. It is
one step of iterative soft thresholding, whose λ is the threshold that the budget has found (Daubechies et al., CPAM
2004; with a learned threshold: STR, Kusupati et al., ICML 2020). Entries at or below the threshold that stay (their
row's floor holds them, or they came back) keep their values: a row of zeros could not be scaled to length 1.
"""

from __future__ import annotations

import numpy as np

from hse_dist.sparsity.growth import Floats
from hse_dist.sparsity.selection import Mask, Selection, score_of
from hse_dist.sparsity.slots import in_lengths
from hse_dist.tables.sharded import OwnedRows


def freed_below(drop: Selection, restore: Selection) -> float:
    """No score of an entry that all rows' decisions free is above this; 0 where they free none."""
    if drop.count == restore.count:
        return 0.0
    return score_of(restore.threshold if restore.count else drop.threshold) or 0.0


def shrink(rows: OwnedRows, gains: Floats, freed: Mask, threshold: float | None) -> None:
    """Move values towards 0 by threshold / √|gain|, in place, where |value| · √|gain| is above the threshold.

    A block of columns moves as a whole, by its length (the group lasso's step: Yuan & Lin, JRSS B 2006).

    Args:
        freed: bool [places], places that become free.
        threshold: of all rows; None: each row has its own, the largest score that is freed in it.
    """
    lengths = np.diff(rows.offsets)
    weights = np.repeat(np.sqrt(np.abs(gains)), lengths)
    sizes = np.abs(in_lengths(rows).values)
    scores = sizes * weights
    if threshold is None:
        of_rows = np.maximum.reduceat(np.where(freed, scores, np.float32(0)), rows.offsets[:-1])
        limits = np.repeat(of_rows, lengths)
    else:
        limits = np.full(len(scores), threshold, np.float32)
    above = (scores > limits) & ~freed & (limits > 0)
    left = np.maximum(sizes[above] - limits[above] / weights[above], 0)
    if rows.block == 1:
        rows.values[above] = np.sign(rows.values[above]) * left
    else:
        rows.by_place[above] *= (left / sizes[above])[:, None]
