"""The local-inverse start: a sparse factor of the inverse Gram matrix, one small solve an item.

In: the co-occurrence of a catalogue ordered by falling count. Out: triples (row, column, value) of the item embeddings.

With G = XᵀX + λI, item i's pattern S is i itself and the m - 1 more popular items j with the largest G_ij / G_jj. The
factor's row is L[i, S] = y / √y_i where G[S, S] y = e_i, so that LᵀL ≈ G⁻¹ and column j of L is item j's embedding.
With the Cholesky factor G[S, S] = UᵀU and i last in S, that row is simply the solution of U x = e_i.
Every item is solved by itself in float64, so the result does not depend on how items are spread over tasks.
Source: Kolotilina & Yeremin, factorized sparse approximate inverse, SIAM J. Matrix Anal. 1993.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as ss
from scipy.linalg import lapack

from hse_dist.errors import NumericError
from hse_dist.sparsity.start.gram import CoOccurrence, Shared
from hse_dist.sparsity.start.triples import Triples

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

PAIRS = 2**21
"""Pairs of items looked up and solved at a time: some 100 MB."""


@dataclass(frozen=True)
class Patterns:
    """The patterns of a range of items: item first + r has `columns[offsets[r] : offsets[r + 1]]`, itself last."""

    first: int
    offsets: Ints
    columns: Ints


def find_patterns(pairs: CoOccurrence, first: int, last: int, *, regularization: float, size: int) -> Patterns:
    """The patterns of the items first … last - 1: ascending rows, at most `size` of them; ties go to lower rows."""
    begin, end = int(pairs.offsets[first]), int(pairs.offsets[last])
    columns = np.asarray(pairs.columns[begin:end])
    weights = pairs.shared[begin:end] / (pairs.counts[columns] + regularization)
    keep = np.ones(len(columns), dtype=bool)
    starts = pairs.offsets[first : last + 1] - begin
    for r in np.flatnonzero(np.diff(starts) > size - 1):
        row = slice(starts[r], starts[r + 1])
        keep[row] = _strongest(weights[row], size - 1)
    items = np.arange(first, last)
    rows = np.concatenate([np.repeat(items, np.diff(starts))[keep], items])
    columns = np.concatenate([columns[keep].astype(np.int64), items])
    order = np.lexsort((columns, rows))
    offsets = np.searchsorted(rows[order], np.arange(first, last + 1))
    return Patterns(first, offsets.astype(np.int64), columns[order])


def _strongest(weights: Doubles, count: int) -> npt.NDArray[np.bool_]:
    """Which of the weights are the `count` largest; ties go to the first."""
    if count == 0:
        return np.zeros(len(weights), dtype=bool)
    threshold = np.partition(weights, -count)[-count]
    mask = weights > threshold
    mask[np.flatnonzero(weights == threshold)[: count - np.count_nonzero(mask)]] = True
    return mask


def solve_range(pairs: CoOccurrence, first: int, last: int, *, regularization: float, size: int) -> Triples:
    """The factor's rows first … last - 1 as triples of embeddings: row = member of the pattern, column = the item.

    Raises:
        NumericError: a block of the Gram matrix is not positive definite in float64; names the item's row.
    """
    patterns = find_patterns(pairs, first, last, regularization=regularization, size=size)
    triangle, diagonal = pairs.triangle(), (pairs.counts + regularization).astype(np.float64)
    rows, columns, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for groups in _batches(patterns):
        shared = _look_up(triangle, [members for _, members in groups])
        for (items, members), block in zip(groups, shared, strict=True):
            rows.append(members.ravel())
            columns.append(np.repeat(items, members.shape[1]))
            values.append(_solve(items, members, block, diagonal, regularization).ravel())
    return Triples(np.concatenate(rows), np.concatenate(columns), np.concatenate(values))


def _batches(patterns: Patterns) -> Iterator[list[tuple[Ints, Ints]]]:
    """Groups of items with patterns of one size: items int64 [n], members int64 [n, size]; PAIRS pairs a batch."""
    sizes = np.diff(patterns.offsets)
    order = np.argsort(sizes, kind="stable")
    batch = np.cumsum(sizes[order] * (sizes[order] - 1) // 2) // PAIRS
    for cut in np.split(order, np.flatnonzero(np.diff(batch)) + 1):
        groups = []
        for size in np.unique(sizes[cut]):
            chosen = cut[sizes[cut] == size]
            members = patterns.columns[patterns.offsets[chosen][:, None] + np.arange(size)]
            groups.append((chosen + patterns.first, members))
        yield groups


def _look_up(triangle: ss.csr_array, groups: list[Ints]) -> list[Shared]:
    """The lower triangles of G[S, S] of each group, int32 [n, size · (size - 1) / 2]; one search for all of them."""
    later, earlier = [], []
    for members in groups:
        i, j = np.tril_indices(members.shape[1], -1)
        later.append(members[:, i])
        earlier.append(members[:, j])
    index = [np.concatenate([part.ravel() for part in side]) for side in (later, earlier)]
    found = np.asarray(triangle[index[0], index[1]]).ravel()
    ends = np.cumsum([part.size for part in later])[:-1]
    return [part.reshape(shape.shape) for part, shape in zip(np.split(found, ends), later, strict=True)]


def _solve(
    items: Ints, members: Ints, shared: Shared, diagonal: Doubles, regularization: float
) -> npt.NDArray[np.float32]:
    """x of U x = e_last for each item's G[S, S] = UᵀU: float32 [n, size]."""
    count, size = members.shape
    gram = np.zeros((count, size, size))
    i, j = np.tril_indices(size, -1)
    gram[:, i, j] = shared
    gram[:, np.arange(size), np.arange(size)] = diagonal[members]
    unit = np.zeros(size)
    unit[-1] = 1.0
    solution = np.empty((count, size), np.float32)
    for r in range(count):
        # the transpose of a C array is a Fortran array: LAPACK works in place on its upper triangle
        upper, failed = lapack.dpotrf(gram[r].T, lower=0, overwrite_a=1, clean=0)
        if failed:
            raise NumericError(
                f"The Gram matrix of the pattern of item row {items[r]} is not positive definite.",
                cause="The regularization is too small for these counts.",
                setting="sparsity.local_inverse.regularization",
                value=regularization,
            )
        solution[r], _ = lapack.dtrtrs(upper, unit, lower=0, trans=0)
    return solution
