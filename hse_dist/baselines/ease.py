"""Full EASE: the closed-form linear autoencoder that sparse models are measured against.

In: binary histories and λ. Out: P = (XᵀX + λI)⁻¹, items × items, and scores.

Steck, Embarrassingly Shallow Autoencoders for Sparse Data (WWW 2019), eq. 8: the weights are B_ij = -P_ij / P_jj off
the diagonal and 0 on it, the scores x·B. Seen items are not ranked, so the diagonal never matters and B needs no matrix
of its own: one matrix is filled with the Gram matrix, factored, inverted and mirrored in place,
and scores are x·P scaled by column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from hse_dist.baselines.fitting import need_memory
from hse_dist.errors import ConfigError, NumericError
from hse_dist.sparsity.start.dense_inverse import invert_in_place

DOUBLE_ITEMS = 10_000
"""Up to so many items the arithmetic is float64; beyond, float32 halves memory and time."""

_SIDE = 1024
"""Side of the blocks in which matrices are filled and mirrored."""


@dataclass(frozen=True)
class Ease:
    """`inverse` P `[items, items]`, C-contiguous; `scale` -1 / diag(P) `[items]`."""

    inverse: np.ndarray
    scale: np.ndarray

    def scores(self, inputs: sp.csr_matrix) -> np.ndarray:
        """float32 `[B, items]` of binary histories `[B, items]`; wrong, by its own term, for an item of the history."""
        pooled = inputs.astype(self.inverse.dtype, copy=False) @ self.inverse
        pooled *= self.scale
        return pooled.astype(np.float32, copy=False)


def fit_ease(x: sp.csr_matrix, regularization: float, dtype: np.dtype | type) -> Ease:
    """EASE of the binary matrix `x` `[users, items]`; takes one matrix `[items, items]` of `dtype`.

    Raises:
        ConfigError: the regularization is not positive.
        NumericError: the Gram matrix is not positive definite in this arithmetic.
    """
    if not regularization > 0:
        raise ConfigError(f"EASE needs a regularization above 0, not {regularization}.")
    # the lower triangle of a Fortran matrix, which LAPACK overwrites instead of copying it
    matrix = _gram(x, np.dtype(dtype))
    matrix[np.diag_indices_from(matrix)] += regularization
    if not invert_in_place(matrix):
        raise NumericError(
            f"XᵀX + λI is not positive definite in {matrix.dtype}.",
            cause=f"The regularization {regularization} is too small for these counts.",
        )
    mirror(matrix)
    # P is symmetric, so its transpose is the same matrix laid out as the sparse product wants it
    return Ease(matrix.T, -1.0 / matrix.diagonal())


def _gram(x: sp.csr_matrix, dtype: np.dtype) -> np.ndarray:
    """XᵀX, Fortran order, filled by blocks of columns: its sparse form would be larger than the dense one."""
    items = x.shape[1]
    columns = x.astype(dtype).tocsc()
    matrix = np.empty((items, items), dtype, order="F")
    transposed = columns.T.tocsr()
    for first in range(0, items, _SIDE):
        part = slice(first, min(first + _SIDE, items))
        matrix[:, part] = (transposed @ columns[:, part]).toarray()
    return matrix


def mirror(matrix: np.ndarray) -> None:
    """Copy the lower triangle to the upper one, in place and by blocks."""
    size = len(matrix)
    for i in range(0, size, _SIDE):
        a = slice(i, min(i + _SIDE, size))
        corner = matrix[a, a]
        matrix[a, a] = np.tril(corner) + np.tril(corner, -1).T
        for j in range(i + _SIDE, size, _SIDE):
            b = slice(j, min(j + _SIDE, size))
            matrix[a, b] = matrix[b, a].T


def check_memory(items: int, dtype: np.dtype, users: int) -> None:
    """Check that one matrix of items × items fits.

    Raises:
        ResourceError: it does not.
    """
    # the matrix in place, the blocks that fill and mirror it, and a block of scores in both precisions
    needed = items * dtype.itemsize * (items + 3 * _SIDE) + users * items * (dtype.itemsize + 4)
    cause = "It is items × items: leave out rare items (data.min_item_count) or use a larger machine."
    need_memory(f"EASE of {items} items", needed, cause)
