"""The inverted index of an export: for every column the items that are live in it, strongest first.

In: an export's matrix and gains. Out: arrays that a query reads from the front of each column, as far as it must
(`impacts.py`); they are the same whether the kernel or NumPy made them, so that they can be stored.

The impact of an entry is its value times its item's gain. It is kept as 16 bits, in parts of the largest impact of its
column; rows are in lists of their own for every range of 65 536, and are kept by their lower 16 bits. Within a list
|impact| falls, and equal ones stand by row. Of each block of 32 the first, largest impact is kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from hse_dist.export.own import owners
from hse_dist.native.library import call, library

BLOCK = 32
RANGE = 2**16
MOST = 32_767
"""An impact in its column's own measure."""
LONG = 32
"""Mean postings of a list from which the index pays."""


@dataclass(frozen=True)
class Postings:
    """Of D columns with L entries in all; a list for each range of rows and, within one, for each column.

    Attributes:
        ends: int64 [ranges · D + 1], of the lists.
        postings: uint32 [L], impact (signed) · 65 536 + row of the range.
        block_ends: int64 [ranges · D + 1], of the lists' blocks.
        tops: uint16 [blocks], |impact| of a block's first posting.
        scales: float32 [D], what an impact of 32 767 is.
    """

    ends: np.ndarray
    postings: np.ndarray
    block_ends: np.ndarray
    tops: np.ndarray
    scales: np.ndarray

    @property
    def column_lengths(self) -> np.ndarray:
        """Entries of each column, int64 [D]."""
        return np.diff(self.ends).reshape(-1, len(self.scales)).sum(0)


def build(matrix: sp.csr_matrix, gains: np.ndarray, *, kernels: bool = True) -> Postings:
    """The index of rows float32 CSR [items, D] and gains float32 [items]."""
    (items, dims), live = matrix.shape, len(matrix.indices)
    lists = -(-items // RANGE) * dims
    ends, postings, scales = np.zeros(lists + 1, np.int64), np.empty(live, np.uint32), np.zeros(dims, np.float32)
    if kernels and library() is not None and matrix.indices.dtype == np.int32:
        arrays = (matrix.indptr.astype(np.int64), matrix.indices, matrix.data, gains)
        call("hse_build_postings", items, dims, *arrays, ends, postings, scales)
    else:
        owner = owners(matrix)
        impacts = matrix.data * gains[owner]
        np.maximum.at(scales, matrix.indices, np.abs(impacts))
        scale = scales[matrix.indices].astype(np.float64)
        whole = np.rint(impacts / np.where(scale > 0, scale, 1.0) * MOST).astype(np.int64)
        of = owner // RANGE * dims + matrix.indices
        order = np.lexsort((owner, -np.abs(whole), of))
        ends[1:] = np.cumsum(np.bincount(of, minlength=lists))
        postings[:] = (whole[order] % RANGE) * RANGE + owner[order] % RANGE
    block_ends = blocks_of(ends)
    return Postings(ends, postings, block_ends, _tops(ends, postings, block_ends), scales)


def pays(matrix: sp.csr_matrix) -> bool:
    """Whether an index pays: its lists would be long."""
    items, dims = matrix.shape
    return bool(matrix.nnz >= LONG * dims * -(-items // RANGE))


def blocks_of(ends: np.ndarray) -> np.ndarray:
    """Ends of the lists' blocks."""
    return np.concatenate([[0], np.cumsum(-(-np.diff(ends) // BLOCK))])


def impacts_of(postings: np.ndarray) -> np.ndarray:
    """Of postings, int64, signed."""
    return postings.view(np.int32).astype(np.int64) >> 16


def _tops(ends: np.ndarray, postings: np.ndarray, block_ends: np.ndarray) -> np.ndarray:
    of = np.repeat(np.arange(len(ends) - 1), np.diff(block_ends))
    first = ends[of] + BLOCK * (np.arange(block_ends[-1]) - block_ends[of])
    return np.abs(impacts_of(postings[first])).astype(np.uint16)
