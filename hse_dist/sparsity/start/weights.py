"""What a user's history counts for: long histories less than short ones.

In: how many histories have each length, and a power β. Out: an integer weight for each length, about
`UNIT` · length^-β; XᵀWX is counted with them, in multiples of `UNIT` (`gram.py`).

A user of n items adds n² pairs, so a few long histories tell most of what is known of many items, though each of their
pairs says less. Weights are whole numbers, so that XᵀWX is exact in integers and positive semidefinite as it is.
Source: the user-side normalisation of Park et al., Why is Normalization Necessary for Linear Recommenders?, SIGIR 2025.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from hse_dist.data.prepared import HistoryBlock

Ints = npt.NDArray[np.int64]

UNIT = 64
"""The mean weight of an interaction: weights from 1/64 of the mean on are told apart."""

LARGEST = 2**20
"""Most that a user weighs: a history of one item where others are very long."""


def count_lengths(blocks: Iterable[HistoryBlock]) -> Ints:
    """How many histories have each length, int64 [longest + 1]."""
    found = np.zeros(1, np.int64)
    for block in blocks:
        own = np.bincount(np.diff(block.offsets), minlength=len(found))
        own[: len(found)] += found
        found = own
    return found


def weights_by_length(users: Ints, power: float) -> Ints:
    """Whole numbers near scale · length^-power, from 1 to `LARGEST`, whose mean over all interactions is about `UNIT`.

    Args:
        users: int64 [longest + 1], how many have a history of each length; a length of 0 weighs as 1.

    Returns:
        int64 [longest + 1].
    """
    lengths = np.maximum(np.arange(len(users)), 1)
    shares = lengths**-power
    # sums over lengths, not users: they take no memory a user, and no order of users changes their last bits
    scale = UNIT * (lengths @ users) / ((shares * lengths) @ users)
    return np.clip(np.rint(scale * shares), 1, LARGEST).astype(np.int64)
