"""Which more popular items an item is solved with: its pattern, by `sparsity.local_inverse.pattern`.

    conditional   the m - 1 with the largest G_ij / G_jj                              (`local_inverse.find_patterns`)
    two_hop       the m - 1 with the largest weight directly or over one of the strongest neighbours: of what neighbours
                  share, the second term of the series of G⁻¹, and the pattern of G² instead of that of G
    greedy        of the `candidates` - 1 with the largest G_ij / G_jj, one at a time, what explains most of what those
                  before it leave of item i

In: the co-occurrence, a range of items. Out: their patterns. A refinement adds to what a cut has left of a pattern the
candidates with the largest gradient, as many as are left, so that after the next cut strong ones have taken the places
of weak ones. Every item is by itself, so the ranges change nothing; ties go to lower rows.

Sources: two hops: a priori patterns from powers of the matrix, Chow, SIAM J. Sci. Comput. 2000. Greedy: adaptive
patterns by the gradient of the Kaporin number, Janna & Ferronato, SIAM J. Sci. Comput. 2011, with the exact fall of
that number by one more member in the gradient's place, by a partial Cholesky factor, Huan et al., arXiv 2307.11648.
Refinement: members of the largest gradient, Janna & Ferronato; Grote & Huckle, SIAM J. Sci. Comput. 1997.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as ss

from hse_dist.config import LocalInverseSettings
from hse_dist.sparsity.start.gram import CoOccurrence
from hse_dist.sparsity.start.local_inverse import (
    Doubles,
    Guard,
    Ints,
    Patterns,
    Regularization,
    find_patterns,
    join_patterns,
    local_grams,
    solve_one,
    strongest,
)

HOPS = 8
"""Strongest neighbours whose own patterns `two_hop` looks into."""
PRODUCTS = 2**20
"""Paths of two hops looked at a time: some 50 MB."""


def pool_size(settings: LocalInverseSettings) -> int:
    """Members of the widest patterns that are looked at: those whose pairs are needed."""
    return settings.candidates if settings.pattern == "greedy" else settings.entries


def first_patterns(
    pairs: CoOccurrence,
    first: int,
    last: int,
    regularization: Regularization,
    settings: LocalInverseSettings,
) -> Patterns:
    """The patterns of the items first … last - 1 before any cut."""
    pool = candidates(pairs, first, last, regularization, settings)
    return greedy(pairs, pool, regularization, settings.entries) if settings.pattern == "greedy" else pool


def candidates(
    pairs: CoOccurrence,
    first: int,
    last: int,
    regularization: Regularization,
    settings: LocalInverseSettings,
) -> Patterns:
    """What a pattern, or what is added to it, may be chosen from, with each item itself."""
    diagonal, size = regularization.diagonal(pairs.counts), pool_size(settings)
    find = two_hop if settings.pattern == "two_hop" else find_patterns
    return find(pairs, first, last, diagonal=diagonal, size=size)


def two_hop(pairs: CoOccurrence, first: int, last: int, *, diagonal: Doubles, size: int) -> Patterns:
    """The `size` - 1 members j of each item i with the largest w_ij + Σ_k w_ik w_kj, w_ij = G_ij / G_jj, where k are
    the `HOPS` strongest neighbours of i, and j is in the conditional pattern of k or i; needs all pairs."""
    items, members = [], []
    step = max(PRODUCTS // (HOPS * size), 1)
    for begin in range(first, last, step):
        mine = np.arange(begin, min(begin + step, last))
        own = _strongest_rows(pairs, mine, diagonal, size - 1)
        near = _strongest_rows(pairs, mine, diagonal, min(HOPS, size - 1))
        through = np.unique(near.indices)
        strength = (own + near[:, through] @ _strongest_rows(pairs, through, diagonal, size - 1)).tocsr()
        strength.sort_indices()
        rows = np.repeat(np.arange(len(mine)), np.diff(strength.indptr))
        order = np.lexsort((strength.indices, -strength.data, rows))
        chosen = order[np.arange(len(order)) - strength.indptr[rows] < size - 1]
        items.append(begin + rows[chosen])
        members.append(strength.indices[chosen].astype(np.int64))
    return join_patterns(np.concatenate(items), np.concatenate(members), first, last)


def _strongest_rows(pairs: CoOccurrence, rows: Ints, diagonal: Doubles, count: int) -> ss.csr_array:
    """w of these rows, the `count` largest of each, [their number, items]."""
    columns, weights, lengths = [np.empty(0, np.int64)], [np.empty(0)], [0]
    for row in rows.tolist():
        stored = slice(int(pairs.offsets[row]), int(pairs.offsets[row + 1]))
        own = pairs.columns[stored].astype(np.int64)
        weight = pairs.shared[stored] / diagonal[own]
        if len(own) > count:
            kept = strongest(weight, count)
            own, weight = own[kept], weight[kept]
        columns.append(own)
        weights.append(weight)
        lengths.append(len(own))
    content = (np.concatenate(weights), np.concatenate(columns), np.cumsum(lengths))
    return ss.csr_array(content, shape=(len(rows), len(pairs.counts)))


def greedy(pairs: CoOccurrence, pool: Patterns, regularization: Regularization, size: int) -> Patterns:
    """Of each pattern of the pool at most `size` members, chosen one after the other, each item's own included."""
    items, members = [], []
    for r, own, gram in local_grams(pairs, pool, regularization):
        chosen = own[:-1][_greedy_members(gram, size - 1)]
        items.append(np.full(len(chosen), pool.first + r))
        members.append(chosen)
    return _joined(items, members, pool)


def _greedy_members(gram: Doubles, count: int) -> Ints:
    """The `count` members that lower the conditional variance of the last one most, each given those before it; fewer
    where no other is of use. `gram`: lower triangle [size, size]. Of equal members the first is taken."""
    others = len(gram) - 1
    full = gram + np.tril(gram, -1).T
    left, variance = full[-1, :-1].copy(), full.diagonal()[:-1].copy()  # covariance with the item; variance; given S
    factor, chosen = np.zeros((min(count, others), others)), []
    for step in range(len(factor)):
        fall = np.divide(left * left, variance, out=np.zeros(others), where=variance > 0)
        best = int(fall.argmax())
        if fall[best] <= 0:
            break
        before = factor[:step]
        row = (full[best, :-1] - before[:, best] @ before) / np.sqrt(variance[best])
        left -= row * (left[best] / np.sqrt(variance[best]))
        variance -= row * row
        left[best] = variance[best] = 0.0
        factor[step] = row
        chosen.append(best)
    return np.array(chosen, np.int64)


def grow(
    pairs: CoOccurrence, left: Patterns, pool: Patterns, regularization: Regularization, guard: Guard | None = None
) -> Patterns:
    """What a cut has left, and as many members of the pool with the largest (G y)_j² / G_jj, where G[S, S] y = e_i.

    Args:
        left: patterns S of the same items as those of the pool.

    Raises:
        NumericError: a block of the Gram matrix is not positive definite in float64; names the item's row.
    """
    rows = np.repeat(np.arange(len(left.offsets) - 1), np.diff(left.offsets))
    wider = np.repeat(np.arange(len(pool.offsets) - 1), np.diff(pool.offsets))
    union = np.unique(np.concatenate([rows, wider]) * len(pairs.counts) + np.concatenate([left.columns, pool.columns]))
    both = join_patterns(*_split(union, len(pairs.counts), left.first), left.first, left.first + len(left.offsets) - 1)
    items, members = [], []
    for r, own, gram in local_grams(pairs, both, regularization):
        mine = left.columns[left.offsets[r] : left.offsets[r + 1]]
        inside = np.isin(own, mine, assume_unique=True)
        row = solve_one(gram[np.ix_(inside, inside)], left.first + r, regularization, guard)
        between = gram[np.ix_(~inside, inside)] + gram[np.ix_(inside, ~inside)].T  # one of them is above the diagonal
        gain = (between @ row) ** 2 / gram.diagonal()[~inside]
        order = np.argsort(-gain, kind="stable")[: len(mine)]
        added = own[~inside][order[gain[order] > 0]]
        items.append(np.full(len(mine) + len(added), left.first + r))
        members += [mine, added]
    return _joined(items, members, left)


def _split(keys: Ints, items: int, first: int) -> tuple[Ints, Ints]:
    return first + keys // items, keys % items


def _joined(items: list[Ints], members: list[Ints], like: Patterns) -> Patterns:
    nothing = [np.empty(0, np.int64)]
    last = like.first + len(like.offsets) - 1
    return join_patterns(np.concatenate(items + nothing), np.concatenate(members + nothing), like.first, last)
