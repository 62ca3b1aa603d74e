"""The local-inverse start: a sparse factor of the inverse Gram matrix, one small solve an item.

In: the co-occurrence of a catalogue ordered by falling count. Out: triples (row, column, value) of the item embeddings.

With G = XᵀX + Λ (XᵀWX + Λ, where users have weights), item i's pattern S is i itself and the m - 1 more popular items
j with the largest G_ij / G_jj (or others, `patterns.py`). The factor's row is L[i, S] = y / √y_i where G[S, S] y = e_i,
so that LᵀL ≈ G⁻¹ and column j of L is item j's embedding. With the Cholesky factor G[S, S] = UᵀU and i last in S, that
row is simply the solution of U x = e_i.

The cut to the budget leaves each item a smaller pattern, on which the same solve gives the best values, as the others
make up for those that were cut: the refit. The cut's score |value| · √|gain| is what suits it: leaving j out of S makes
y_i smaller by its share L[i, j]² / (G[S, S]⁻¹)_jj (the saliency of the optimal brain surgeon, Hassibi & Stork, NIPS
1992), and 1 / |gain| estimates that divisor. So it does best for few at a time: `cuts` in which the budget is reached,
each with a refit (Han et al., Learning both Weights and Connections, NIPS 2015), cut with better values.

Λ is λI and, with dropout p of the histories, p / (1 - p) · diag(XᵀX) (EDLAE: Steck, NeurIPS 2020): rare items are held
by λ, popular ones by their own count.

Every item is solved by itself in float64, so the result does not depend on how items are spread over tasks. (From 128
entries a pattern on, OpenBLAS splits a factorization over its threads, and then the last bits depend on their number.)
Source: Kolotilina & Yeremin, factorized sparse approximate inverse, SIAM J. Matrix Anal. 1993.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from hse_dist.errors import NumericError
from hse_dist.native.library import call, library
from hse_dist.sparsity.start.gram import CoOccurrence, Shared
from hse_dist.sparsity.start.triples import Triples

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

SHARED = 2**25
"""Pairs of items looked up at a time: 128 MB."""
FIRST_SHIFT, MOST_SHIFT = 2.0**-10, 2.0**20
"""Shares of its diagonal that a matrix is raised by which is not positive definite."""


@dataclass
class Guard:
    """Lets a pattern whose matrix is not positive definite, as sampled counts may make it, be solved all the same: its
    diagonal is raised by a share of itself that doubles until the factorization succeeds.

    Attributes:
        shifted: patterns that needed it.
    """

    shifted: int = 0

    def solve(self, gram: Doubles) -> Doubles | None:
        """`_solve` of a matrix with a raised diagonal; None where even the most is not enough."""
        self.shifted += 1
        share = FIRST_SHIFT
        while share < MOST_SHIFT:
            raised = gram.copy()
            raised.flat[:: len(gram) + 1] *= 1.0 + share
            if (row := _solve(raised)) is not None:
                return row
            share *= 2.0
        return None


@dataclass(frozen=True)
class Patterns:
    """Of the items from `first` on, the r-th has `columns[offsets[r] : offsets[r + 1]]`: ascending, itself last."""

    first: int
    offsets: Ints
    columns: Ints

    def part(self, begin: int, end: int) -> Patterns:
        """Those from the begin-th to before the end-th."""
        offsets = self.offsets[begin : end + 1]
        return Patterns(self.first + begin, offsets - offsets[0], self.columns[offsets[0] : offsets[-1]])


@dataclass(frozen=True)
class Regularization:
    """Λ, by λ and the dropout of histories.

    Attributes:
        unit: what an interaction of mean weight counts as in XᵀX.
    """

    constant: float
    dropout: float = 0.0
    unit: int = 1

    def diagonal(self, counts: Ints) -> Doubles:
        """The diagonal of G from that of XᵀX."""
        return counts / (1.0 - self.dropout) + self.unit * self.constant


def find_patterns(pairs: CoOccurrence, first: int, last: int, *, diagonal: Doubles, size: int) -> Patterns:
    """The patterns of the items first … last - 1, of at most `size` items; ties go to lower rows."""
    begin, end = int(pairs.offsets[first]), int(pairs.offsets[last])
    columns = np.asarray(pairs.columns[begin:end])
    weights = pairs.shared[begin:end] / diagonal[columns]
    keep = np.ones(len(columns), dtype=bool)
    starts = pairs.offsets[first : last + 1] - begin
    for r in np.flatnonzero(np.diff(starts) > size - 1):
        row = slice(starts[r], starts[r + 1])
        keep[row] = strongest(weights[row], size - 1)
    items = np.repeat(np.arange(first, last), np.diff(starts))
    return join_patterns(items[keep], columns[keep].astype(np.int64), first, last)


def join_patterns(items: Ints, members: Ints, first: int, last: int) -> Patterns:
    """The patterns of the items first … last - 1 from pairs (item, member) in any order; each item joins its own."""
    own = np.arange(first, last)
    others = members != items
    items, members = np.concatenate([items[others], own]), np.concatenate([members[others], own])
    order = np.lexsort((members, items))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(items - first, minlength=last - first))])
    return Patterns(first, offsets, members[order])


def strongest(weights: Doubles, count: int) -> npt.NDArray[np.bool_]:
    """Which of the weights are the `count` largest; ties go to the first."""
    if count == 0:
        return np.zeros(len(weights), dtype=bool)
    threshold = np.partition(weights, -count)[-count]
    mask = weights > threshold
    mask[np.flatnonzero(weights == threshold)[: count - np.count_nonzero(mask)]] = True
    return mask


def solve(
    pairs: CoOccurrence, patterns: Patterns, regularization: Regularization, guard: Guard | None = None
) -> Triples:
    """The factor's rows on these patterns as triples of embeddings: row = member of the pattern, column = the item.

    Args:
        guard: for counts that were sampled; without them the Gram matrix is positive definite, up to rounding.

    Raises:
        NumericError: a block of the Gram matrix is not positive definite in float64; names the item's row.
    """
    values = np.empty(len(patterns.columns), np.float32)
    for r, _, gram in local_grams(pairs, patterns, regularization):
        row = solve_one(gram, patterns.first + r, regularization, guard)
        values[patterns.offsets[r] : patterns.offsets[r + 1]] = row
    sizes = np.diff(patterns.offsets)
    items = np.repeat(patterns.first + np.arange(len(sizes)), sizes)
    return Triples(patterns.columns, items, values)


def local_grams(
    pairs: CoOccurrence, patterns: Patterns, regularization: Regularization
) -> Iterator[tuple[int, Ints, Doubles]]:
    """For each pattern its number, its members and the lower triangle of its block of G, float64 [size, size]."""
    diagonal = regularization.diagonal(pairs.counts)
    sizes = np.diff(patterns.offsets)
    step = max(SHARED // int(sizes.max(initial=1)) ** 2, 1)
    for begin in range(0, len(sizes), step):
        batch = np.arange(begin, min(begin + step, len(sizes)))
        members, counts = _padded(patterns, batch, padding=len(pairs.counts))
        for r, shared in enumerate(_look_up(pairs, members, counts)):
            own = members[r, : counts[r]]
            gram = shared[: len(own), : len(own)].astype(np.float64)
            gram.flat[:: len(own) + 1] = diagonal[own]
            yield int(batch[r]), own, gram


def solve_one(gram: Doubles, item: int, regularization: Regularization, guard: Guard | None = None) -> Doubles:
    """y / √y_i of G[S, S] y = e_i from the lower triangle of G[S, S], i last, which is overwritten without a guard.

    Raises:
        NumericError: the matrix is not positive definite in float64; names the item's row.
    """
    row = _solve(gram if guard is None else gram.copy())
    if row is None and guard is not None:
        row = guard.solve(gram)
    if row is None:
        raise NumericError(
            f"The Gram matrix of the pattern of item row {item} is not positive definite.",
            cause="The regularization is too small for these counts.",
            setting="sparsity.local_inverse.regularization",
            value=regularization.constant,
        )
    return row


def _padded(patterns: Patterns, batch: Ints, padding: int) -> tuple[Ints, Ints]:
    """The patterns of a batch as int64 [n, largest size], filled up with `padding`, and their sizes."""
    sizes = np.diff(patterns.offsets)[batch]
    members = np.full((len(batch), int(sizes.max())), padding)
    inside = np.arange(members.shape[1]) < sizes[:, None]
    members[inside] = patterns.columns[patterns.offsets[batch[0]] : patterns.offsets[batch[-1] + 1]]
    return members, sizes


def _look_up(pairs: CoOccurrence, members: Ints, sizes: Ints) -> Shared:
    """The strict lower triangles of XᵀX on each pattern, int32 [n, width, width].

    The compiled kernel goes pattern by pattern and searches each row from member to member. Without it, row by row
    of the triangle: a row is spread out once and read for every pattern that it belongs to.
    """
    count, width = members.shape
    shared = np.zeros((count * width, width), np.int32)
    if library() is not None:
        stored = (pairs.offsets, pairs.columns, pairs.shared)
        call("hse_look_up", count, width, members, sizes, *stored, shared)
        return shared.reshape(count, width, width)
    places = np.flatnonzero(np.arange(width) < sizes[:, None])
    places = places[np.argsort(members.ravel()[places], kind="stable")]
    later = members.ravel()[places]
    spread = np.zeros(len(pairs.counts) + 1, np.int32)
    starts = np.flatnonzero(np.diff(later, prepend=-1))
    for row, mine in zip(later[starts].tolist(), np.split(places, starts[1:]), strict=True):
        begin, end = pairs.offsets[row], pairs.offsets[row + 1]
        earlier = pairs.columns[begin:end]
        spread[earlier] = pairs.shared[begin:end]
        shared[mine] = spread[members[mine // width]]
        spread[earlier] = 0
    return shared.reshape(count, width, width)


def _solve(gram: Doubles) -> Doubles | None:
    """x of U x = e_last where gram = UᵀU, from its lower triangle; None where it is not positive definite."""
    unit = np.zeros(len(gram))
    unit[-1] = 1.0
    # the transpose of a C array is a Fortran array: LAPACK works in place on its upper triangle
    upper, failed = lapack.dpotrf(gram.T, lower=0, overwrite_a=1, clean=0)
    return None if failed else lapack.dtrtrs(upper, unit, lower=0, trans=0)[0]
