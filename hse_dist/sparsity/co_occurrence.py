"""Positions that could grow because a row's neighbours use their columns.

In: the rows of a batch's candidates and its histories. Out: of each row that is in a history, the columns with the
largest Σ |value| over the rows that share a history with it, if they are not live in it. No gradient is needed.
Source: the neighbourhood of item-based filtering (Sarwar et al., WWW 2001), as a rule of growth (Hoefler et al., arXiv
2102.00554, §3.4: preferential attachment).

With X the histories [B, C] and A the rows [C, D] the sums are XᵀX|A|: products of sparse matrices, for blocks of
candidates whose results fit a memory setting. A row's own values only reach its own columns, which are live.

Shapes: B users, C candidates, L history positions.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as ss
from torch import Tensor

from hse_dist.sparsity.growth import Floats, Ints
from hse_dist.sparsity.momentum import size_keys
from hse_dist.sparsity.strongest import keep_strongest
from hse_dist.tables.block import SparseRows

BYTES = 40
"""Of one sum of a block: as scipy holds it, and as it is numbered and compared."""


def shared_columns(
    rows: SparseRows, offsets: Tensor, positions: Tensor, explore: int, memory_bytes: int
) -> tuple[Ints, Ints, Floats]:
    """The strongest `explore` columns of each candidate that are not live in it.

    Args:
        rows: of the candidates. offsets: int64 [B + 1], positions: int64 [L], histories.
        memory_bytes: bound of a block, as far as one candidate fits it.

    Returns:
        candidates, columns int64 [n], sums float32 [n], by candidate, then column.
    """
    count, dims = len(rows.offsets) - 1, rows.dims
    bounds, places = offsets.cpu().numpy(), positions.cpu().numpy()
    values, columns = np.abs(rows.values.detach().cpu().numpy()), rows.columns.cpu().numpy()
    table = ss.csr_matrix((values, columns, rows.offsets.cpu().numpy()), shape=(count, dims))
    histories = ss.csr_matrix((np.ones(len(places), values.dtype), places, bounds), shape=(len(bounds) - 1, count))
    users, of_candidate = histories @ table, histories.T.tocsr()
    live = np.sort(np.repeat(np.arange(count), np.diff(table.indptr)) * dims + columns)
    most = np.concatenate([[0], np.cumsum(of_candidate @ np.diff(users.indptr).astype(np.int64))])  # sums at most
    found, first = [], 0
    while first < count:
        last = max(int(np.searchsorted(most, most[first] + memory_bytes // BYTES, side="right")) - 1, first + 1)
        found.append(_strongest(of_candidate[first:last] @ users, first, live, explore))
        first = last
    candidates, found_columns, sums = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return candidates, found_columns, sums


def _strongest(sums: ss.csr_matrix, first: int, live: Ints, explore: int) -> tuple[Ints, Ints, Floats]:
    """Of the rows of `sums`, which are the candidates from `first` on."""
    sums.sort_indices()
    count, dims = sums.shape
    rows = np.repeat(np.arange(first, first + count), np.diff(sums.indptr))
    positions = rows * dims + sums.indices
    keys, values = size_keys(sums.data), sums.data.astype(np.float32)
    if len(live):
        keys[live[np.minimum(np.searchsorted(live, positions), len(live) - 1)] == positions] = 0
    limits = np.full(count, explore)
    offsets = sums.indptr.astype(np.int64)
    keep_strongest(offsets, keys, sums.indices.astype(np.int32), limits, largest=True)
    kept = (keys != 0) & (values != 0)
    return rows[kept], sums.indices[kept].astype(np.int64), values[kept]
