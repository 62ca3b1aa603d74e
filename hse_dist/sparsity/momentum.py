"""Growth scores with a memory: gradients of positions that are not live, decayed from rewire to rewire.

In: what was remembered, and what was seen since. Out: the strongest few positions of each row, to choose from and to
remember. A row's memory is bounded and depends on the row's own gradients alone, so it is the same on any number of
ranks. Source: the momentum of sparse momentum training (Dettmers & Zettlemoyer, arXiv 1907.04840, §3), here of rewires
rather than of steps, and of a bounded exploration set (Hoefler et al., arXiv 2102.00554, §3.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hse_dist.sparsity.growth import Floats, Ints
from hse_dist.sparsity.selection import KEY_BITS, Keys
from hse_dist.sparsity.slots import groups
from hse_dist.sparsity.strongest import keep_strongest


@dataclass(frozen=True)
class Momenta:
    """Positions of owned rows by row, then column: rows, columns int64 [n], values float32 [n] with their sign."""

    rows: Ints
    columns: Ints
    values: Floats


def carry(old: Momenta, seen: Momenta, decay: float, explore: int) -> Momenta:
    """decay · old + seen, of each row the `explore` strongest positions; ties go to lower columns.

    Args:
        old: in any order, every position once. seen: by row, then column.
    """
    rows, columns = (np.concatenate(pair) for pair in ((old.rows, seen.rows), (old.columns, seen.columns)))
    if not len(rows):
        return seen
    width = int(columns.max()) + 1
    positions, place = np.unique(rows * width + columns, return_inverse=True)
    values = np.zeros(len(positions))
    values[place[: len(old.rows)]] = decay * old.values.astype(np.float64)
    values[place[len(old.rows) :]] += seen.values
    rows, columns = np.divmod(positions, width)
    kept = strongest_of(rows, columns, values.astype(np.float32), explore)
    return Momenta(rows[kept], columns[kept], values[kept].astype(np.float32))


def strongest_of(rows: Ints, columns: Ints, values: Floats, count: int) -> npt.NDArray[np.bool_]:
    """Which positions are among the `count` of their row with the largest |value|.

    Args:
        rows: int64 [n], ascending. columns: int64 [n]. values: float32 [n]; a NaN counts as the largest, and is kept
            for whoever checks.
    """
    starts, of_group = groups(rows)
    keys = size_keys(values)
    keep_strongest(starts, keys, columns.astype(np.int32), np.full(len(of_group), count), largest=True)
    return keys != 0


def size_keys(values: Floats) -> Keys:
    """Keys in the order of |value|; never 0."""
    return np.abs(values).astype(np.float32).view(np.uint32) | np.uint32(1 << (KEY_BITS - 1))
