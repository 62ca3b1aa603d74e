"""Popularity, and item-kNN with a sparse matrix of neighbours: the oldest baselines, in seconds.

In: a request. Out: an answer. Nothing items × items is held at once: co-occurrence is counted for a block of items at a
time, and the k most similar items of each are kept.

Similarity of items i and j: n_ij / (√(n_i n_j) + s), the cosine of their columns with the shrinkage s, which takes
weight from pairs that few users vouch for. The score of j is the sum over the history's items among the k neighbours of
j. s is chosen on validation by climbing a grid.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from hse_dist.baselines.fitting import ENTRY_BYTES, Answer, Model, Request, choose, measure

SHRINKAGE = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
"""The s that validation chooses from; the climb begins at 5."""

NEIGHBOURS = (10, 20, 50, 100, 200, 500, 1000)
"""The k of `item_knn_full`; the climb begins at 100."""

_PRODUCTS = 2**24
"""Pairs (user, item, item) multiplied at a time."""


def popularity(request: Request) -> Answer:
    """Items by their count; a number an item."""
    counts = request.prepared.counts().astype(np.float32)

    def scores(inputs: sp.csr_matrix) -> np.ndarray:
        return np.tile(counts, (inputs.shape[0], 1))

    return Answer(measure(scores, request, request.split), len(counts), 4.0)


def item_knn(request: Request) -> Answer:
    """k = bytes / 8 neighbours an item."""
    return _with_neighbours(request, request.size(ENTRY_BYTES, "item-knn"))


def item_knn_full(request: Request) -> Answer:
    """As many neighbours as validation likes best: the climb over k, each with its best s."""
    answers: dict[int, Answer] = {}

    def fit(neighbours: int) -> Model:
        answers[neighbours] = _with_neighbours(replace(request, split="valid"), neighbours)
        return _fit(request.prepared.matrix("train"), neighbours, answers[neighbours].chosen["shrinkage"])

    answer = choose(request, "neighbours", NEIGHBOURS, NEIGHBOURS.index(100), fit)
    return replace(answer, chosen={**answer.chosen, **answers[answer.chosen["neighbours"]].chosen})


def _with_neighbours(request: Request, neighbours: int) -> Answer:
    x = request.prepared.matrix("train")
    answer = choose(request, "shrinkage", SHRINKAGE, SHRINKAGE.index(5.0), lambda s: _fit(x, neighbours, s))
    return replace(answer, chosen={"neighbours": neighbours, **answer.chosen})


def _fit(x: sp.csr_matrix, neighbours: int, shrinkage: float) -> Model:
    weights = similar_items(x, neighbours, shrinkage)
    transposed = weights.T.tocsr()

    def scores(inputs: sp.csr_matrix) -> np.ndarray:
        return (inputs @ transposed).toarray()

    return Model(scores, weights.nnz, ENTRY_BYTES * weights.nnz / x.shape[1])


def similar_items(x: sp.csr_matrix, neighbours: int, shrinkage: float) -> sp.csr_matrix:
    """The most similar items of each item.

    Args:
        x: binary `[users, items]`.

    Returns:
        float32 `[items, items]`, at most `neighbours` a row, none on the diagonal; of equal ones the lower column.
    """
    counts = np.bincount(x.indices, minlength=x.shape[1]).astype(np.float64)
    transposed = x.T.tocsr()
    cost = np.cumsum(transposed @ np.diff(x.indptr).astype(np.float64))
    parts, first = [], 0
    while first < x.shape[1]:
        limit = (cost[first - 1] if first else 0.0) + _PRODUCTS
        last = max(int(np.searchsorted(cost, limit, side="right")), first + 1)
        block = (transposed[first:last] @ x).tocsr()
        rows = np.repeat(np.arange(first, last), np.diff(block.indptr))
        block.data = block.data / (np.sqrt(counts[rows] * counts[block.indices]) + shrinkage)
        block.data[rows == block.indices] = 0.0
        parts.append(strongest_of_rows(block, neighbours))
        first = last
    return sp.vstack(parts, format="csr", dtype=np.float32)


def strongest_of_rows(block: sp.csr_matrix, most: int) -> sp.csr_matrix:
    """The `most` largest positive entries of each row; of equal ones the lower column. Changes `block`."""
    block.eliminate_zeros()
    block.sort_indices()
    keep = np.ones(block.nnz, bool)
    for row in np.flatnonzero(np.diff(block.indptr) > most):
        start, stop = block.indptr[row], block.indptr[row + 1]
        values = block.data[start:stop]
        threshold = np.partition(values, len(values) - most)[len(values) - most]
        above = values > threshold
        equal = np.flatnonzero(values == threshold)
        above[equal[: most - int(above.sum())]] = True
        keep[start:stop] = above
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))[keep]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=block.shape[0]))])
    return sp.csr_matrix((block.data[keep], block.indices[keep], offsets), shape=block.shape)
