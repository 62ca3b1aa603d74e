"""How many users two items share: the lower triangle of the co-occurrence matrix XᵀX.

In: the binary histories X, users × items, items by falling count. Out: for every item the more popular ones
(lower rows) that it shares users with. Popular rows are short in this triangle (few rows lie before them), and rare
rows are short because they are rare, so that it is read far faster than the symmetric matrix, and is half its size.

It is built by blocks of items whose products fit into memory and lies in two flat files, which every task maps instead
of receiving a copy. Very long histories make it dense.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as ss

Ints = npt.NDArray[np.int64]
Shared = npt.NDArray[np.int32]

PRODUCTS = 2**24
"""Pairs (user, item, item) multiplied at a time: some 300 MB."""


def lower_blocks(histories: ss.csr_matrix, products: int = PRODUCTS) -> Iterator[tuple[int, ss.csr_array]]:
    """Blocks of rows of the strict lower triangle of XᵀX, in order.

    Args:
        histories: X [users, items]; every stored entry counts as 1.
        products: multiplications a block; at least one row is in each.

    Yields:
        the first row of the block, and the block: int32 [block rows, items], columns ascending.
    """
    x = ss.csr_array(
        (np.ones(histories.nnz, np.int32), histories.indices, histories.indptr), shape=histories.shape, copy=False
    )
    transposed = x.T.tocsr()
    cost = np.cumsum(transposed @ np.diff(x.indptr).astype(np.int64))
    first = 0
    while first < x.shape[1]:
        limit = (cost[first - 1] if first else 0) + products
        last = max(int(np.searchsorted(cost, limit, side="right")), first + 1)
        yield first, _strictly_lower((transposed[first:last] @ x).tocsr(), first)
        first = last


def _strictly_lower(block: ss.csr_array, first: int) -> ss.csr_array:
    """The entries of a block of rows that lie left of the diagonal."""
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    keep = block.indices < rows + first
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[keep], minlength=block.shape[0]))])
    lower = ss.csr_array((block.data[keep], block.indices[keep], offsets), shape=block.shape)
    lower.sort_indices()
    return lower


@dataclass(frozen=True)
class CoOccurrence:
    """The strict lower triangle of XᵀX in CSR, and its diagonal.

    counts: int64 [items], users of each item. offsets: int64 [items + 1]. columns, shared: int32 [pairs].
    """

    counts: Ints
    offsets: Ints
    columns: Shared
    shared: Shared


def write_co_occurrence(histories: ss.csr_matrix, folder: str | Path) -> None:
    """Write the lower triangle of XᵀX block by block, for `open_co_occurrence`."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    lengths = []
    with open(folder / "columns.bin", "wb") as columns, open(folder / "shared.bin", "wb") as shared:
        for _, block in lower_blocks(histories):
            block.indices.astype(np.int32, copy=False).tofile(columns)
            block.data.tofile(shared)
            lengths.append(np.diff(block.indptr))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "counts.npy", np.bincount(histories.indices, minlength=histories.shape[1]).astype(np.int64))


def open_co_occurrence(folder: str | Path) -> CoOccurrence:
    """What `write_co_occurrence` wrote, mapped into memory."""
    folder = Path(folder)
    counts, offsets = np.load(folder / "counts.npy"), np.load(folder / "offsets.npy")
    return CoOccurrence(counts, offsets, _mapped(folder / "columns.bin"), _mapped(folder / "shared.bin"))


def _mapped(path: Path) -> Shared:
    if path.stat().st_size == 0:  # no two items share a user; an empty file cannot be mapped
        return np.empty(0, np.int32)
    return np.asarray(np.memmap(path, np.int32, mode="r"))
