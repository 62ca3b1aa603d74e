"""Positions that could become live: merged from what ranks saw, or drawn at random.

In: gradients of positions of candidates, and how often each row was a candidate. Out: one score a position,
in canonical order. Sums are taken in an order that depends on the gradients alone, so an equal multiset of them gives
bit-equal scores, whatever the number of ranks and their timing.
Source: growth by gradient is RigL's (Evci et al., ICML 2020, §3); the division by visits makes rows that are candidates
at different rates comparable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hse_dist.data.hashing import mix
from hse_dist.native.library import call, library

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SeenGradients:
    """Gradients of positions that are not live: rows, columns int64 [n], gradients float32 [n]."""

    rows: Ints
    columns: Ints
    gradients: Floats

    @classmethod
    def empty(cls) -> SeenGradients:
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def merge(seen: SeenGradients, visited: Ints, *, normalise: bool = True) -> tuple[Ints, Ints, npt.NDArray[np.float64]]:
    """One number a position: Σ gradients, or Σ gradients / visits of its row.

    Args:
        seen: in any order, positions may repeat.
        visited: rows that were candidates, once a visit, in any order.
        normalise: divide by visits.

    Returns:
        rows, columns int64, sums float64 [n], by row, then column.
    """
    if not len(seen.rows):
        return seen.rows, seen.columns, np.empty(0)
    width = int(seen.columns.max()) + 1
    positions, totals = _sums(seen.rows * width + seen.columns, seen.gradients)
    rows, columns = np.divmod(positions, width)
    if normalise:
        known, visits = np.unique(visited, return_counts=True)
        totals = totals / visits[np.searchsorted(known, rows)]
    return rows, columns, totals


def _sums(positions: Ints, gradients: Floats) -> tuple[Ints, npt.NDArray[np.float64]]:
    """The distinct positions, ascending, and the sum of each one's gradients. A float sum depends on its order: they
    are added in the order of their bits, as whole numbers sort fastest."""
    if library() is not None:
        found, sums = np.empty(len(positions), np.int64), np.empty(len(positions))
        gradients = np.ascontiguousarray(gradients)
        count = call("hse_merge", len(positions), int(positions.max()), positions, gradients, found, sums)
        return found[:count], sums[:count]
    order = np.lexsort((gradients.view(np.uint32), positions))
    positions = positions[order]
    starts = np.flatnonzero(np.concatenate([[True], np.diff(positions) != 0]))
    return positions[starts], np.add.reduceat(gradients[order].astype(np.float64), starts)


def random_positions(rows: Ints, counts: Ints, dims: int, seed: int, version: int) -> tuple[Ints, Ints, Floats]:
    """Random positions and scores, keyed by (seed, version, row), so that no other row or rank has a say.

    Args:
        rows: int64 [n], ascending; counts: how many positions for each.

    Returns:
        rows, columns, scores, by row, then column, without repeats.
    """
    repeated = np.repeat(rows, counts)
    index = np.arange(len(repeated)) - np.repeat(np.cumsum(counts) - counts, counts)
    key = mix(repeated.astype(np.uint64) ^ mix(np.array([seed + (version << 32)], dtype=np.uint64)))
    draws = mix(key + index.astype(np.uint64))
    columns = (draws % np.uint64(dims)).astype(np.int64)
    scores = ((mix(draws) >> np.uint64(40)).astype(np.float32) + 1.0) / np.float32(2**24)
    _, unique = np.unique(repeated * dims + columns, return_index=True)
    return repeated[unique], columns[unique], scores[unique]
