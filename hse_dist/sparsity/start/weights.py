"""What a user's history counts for: long histories less than short ones.

In: the lengths of histories and a power β. Out: an integer weight a user, about `UNIT` · length^-β, and the
co-occurrence of weighted users XᵀWX in the files of `gram.py`, in multiples of `UNIT`.

A user of n items adds n² pairs, so a few long histories tell most of what is known of many items, though each of their
pairs says less. Weights are whole numbers, so that XᵀWX is exact in integers and positive semidefinite as it is.
Source: the user-side normalisation of Park et al., Why is Normalization Necessary for Linear Recommenders?, SIGIR 2025.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as ss

from hse_dist.errors import ResourceError
from hse_dist.sparsity.start.gram import PRODUCTS

Ints = npt.NDArray[np.int64]
Weights = npt.NDArray[np.int32]

UNIT = 64
"""The mean weight of an interaction: weights from 1/64 of the mean on are told apart."""

LARGEST = 2**20
"""Most that a user weighs: a history of one item where others are very long."""


def user_weights(lengths: Ints, power: float) -> Weights:
    """Whole numbers near scale · length^-power, from 1 to `LARGEST`, whose mean over all interactions is about `UNIT`.

    Args:
        lengths: int64 [users]; a length of 0 weighs as 1.

    Returns:
        int32 [users].
    """
    lengths = np.maximum(lengths, 1)
    shares = lengths**-power
    scale = UNIT * lengths.sum() / (shares @ lengths)
    return np.clip(np.rint(scale * shares), 1, LARGEST).astype(np.int32)


def write_weighted(histories: ss.csr_matrix, weights: Weights, folder: str | Path, products: int = PRODUCTS) -> None:
    """Write the lower triangle of XᵀWX by blocks of items, for `open_co_occurrence`.

    Args:
        histories: X [users, items]; every stored entry counts as 1.
        weights: int32 [users]. products: multiplications a block; at least one item is in each.

    Raises:
        ResourceError: the users of an item weigh more than an int32 holds.
    """
    folder, items = Path(folder), histories.shape[1]
    lengths = np.diff(histories.indptr).astype(np.int64)
    shape, ones = histories.shape, np.ones(histories.nnz, np.int32)
    x = ss.csr_array((ones, histories.indices, histories.indptr), shape=shape)
    weighted = ss.csr_array((np.repeat(weights, lengths), histories.indices, histories.indptr), shape=shape)
    counts = np.bincount(weighted.indices, weights=weighted.data, minlength=items).astype(np.int64)
    if counts.max(initial=0) > np.iinfo(np.int32).max:
        raise ResourceError(
            f"The users of one item weigh {counts.max()} in all, more than its counts can hold.",
            cause="Let all histories count alike.",
            setting="sparsity.local_inverse.history_power",
            value=0.0,
        )
    folder.mkdir(parents=True)
    transposed = weighted.T.tocsr()
    bounds = _blocks(x.T.tocsr() @ lengths, products)
    sizes = []
    with open(folder / "columns.bin", "wb") as columns, open(folder / "shared.bin", "wb") as shared:
        for first, last in pairwise(bounds):
            # column < first + row of the block
            block = ss.tril((transposed[first:last] @ x).tocsr(), first - 1, format="csr")
            block.sort_indices()
            block.indices.astype(np.int32, copy=False).tofile(columns)
            block.data.astype(np.int32, copy=False).tofile(shared)
            sizes.append(np.diff(block.indptr))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "counts.npy", counts)


def _blocks(costs: Ints, products: int) -> list[int]:
    """Bounds of blocks of items that cost at most `products`, or are a single item."""
    total, bounds = np.cumsum(costs), [0]
    while bounds[-1] < len(costs):
        limit = (total[bounds[-1] - 1] if bounds[-1] else 0) + products
        bounds.append(max(int(np.searchsorted(total, limit, side="right")), bounds[-1] + 1))
    return bounds
