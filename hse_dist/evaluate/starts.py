"""What a start is worth: how well it ranks for held-out users before any training.

In: a start folder and prepared data. Out: nDCG@100 on validation. The start is read by ranges of rows, so that what is
in memory is a range, and the pooled vectors and scores of a block of users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch

from hse_dist.data.popularity import thirds
from hse_dist.evaluate.metrics import DEPTH, Metrics
from hse_dist.evaluate.topk import TopK, mask
from hse_dist.sparsity.start.folder import StartFolder, row_ranges

if TYPE_CHECKING:
    from hse_dist.data.prepared import Prepared

USERS = 4096
"""Users judged at most: the first of the split, whose order is that of a hash."""

POOLED = 2**26
"""Numbers in the pooled vectors of a block of users: 256 MB."""


def worth(prepared: Prepared, start: StartFolder) -> float:
    """nDCG@100 of a start for the validation users.

    Raises:
        DataError: there are no validation users.
    """
    inputs, targets = prepared.matrix("valid")[:USERS], prepared.targets("valid")[:USERS]
    metrics = Metrics(thirds(prepared.counts()))
    users = max(1, min(256, POOLED // start.dims))
    for first in range(0, inputs.shape[0], users):
        block, wanted = inputs[first : first + users], targets[first : first + users]
        order = np.arange(first, first + block.shape[0], dtype=np.int64)
        metrics.add(_top(start, block), wanted.indptr.astype(np.int64), wanted.indices.astype(np.int64), order)
    return float(metrics.result()["ndcg@100"])


def _top(start: StartFolder, histories: sp.csr_matrix) -> np.ndarray:
    """int64 `[B, 100]`, without the items of the histories `[B, items]`, whose own terms are thus of no matter."""
    columns = histories.tocsc()
    pooled = np.zeros((histories.shape[0], start.dims), np.float32)
    for first, last in row_ranges(start.rows):
        pooled += columns[:, first:last] @ _rows(start, first, last)
    offsets, rows = (torch.from_numpy(part.astype(np.int64)) for part in (histories.indptr, histories.indices))
    top = TopK(histories.shape[0], DEPTH)
    for first, last in row_ranges(start.rows):
        products = _rows(start, first, last) @ pooled.T
        scores = torch.from_numpy(np.ascontiguousarray(products.T) * start.gains(first, last))
        mask(scores, first, offsets, rows)
        top.update(scores, first)
    return top.result().numpy()


def _rows(start: StartFolder, first: int, last: int) -> sp.csr_matrix:
    offsets, columns, values = start.entries(first, last)
    return sp.csr_matrix((values, columns, offsets), shape=(last - first, start.dims))
