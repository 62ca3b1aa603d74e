"""Cholesky factors and inverses of matrices of items × items, in place.

In: a symmetric positive definite matrix, of which the lower triangle counts. Out: its factor or its inverse in the same
memory, and whether there is one. Small matrices go to LAPACK as they are. Larger ones are worked on in blocks that
LAPACK and BLAS are asked for one at a time (right-looking Cholesky, then the inverse of the factor, then its square;
Higham, Accuracy and Stability of Numerical Algorithms, ch. 10 and 14): with two threads SciPy's OpenBLAS (0.3.30) ends
the process in a `potrf` of 32 000 float32 items, and no call here is larger than a panel of blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import get_blas_funcs, get_lapack_funcs

Matrix = npt.NDArray[Any]

WHOLE_ITEMS = 16_384
"""Up to so many items LAPACK takes the matrix whole."""
SIDE = 2048
"""Of a block."""


def factor_in_place(matrix: Matrix, *, clean: bool = False) -> bool:
    """Replace the lower triangle by that of L, L·Lᵀ = matrix; False: the matrix is not positive definite.

    Args:
        matrix: float32 or float64 [n, n], Fortran order.
        clean: whether zeros are wanted above the diagonal; without it what is there stays.
    """
    if len(matrix) <= WHOLE_ITEMS:
        (potrf,) = get_lapack_funcs(("potrf",), (matrix,))
        _, failed = potrf(matrix, lower=1, clean=int(clean), overwrite_a=1)
        return not failed
    (potrf,), (trsm,) = get_lapack_funcs(("potrf",), (matrix,)), get_blas_funcs(("trsm",), (matrix,))
    for own, below in _blocks(len(matrix)):
        corner, failed = potrf(matrix[own, own], lower=1, clean=1)
        if failed:
            return False
        matrix[own, own] = corner if clean else corner + np.triu(matrix[own, own], 1)
        panel = trsm(1.0, corner, np.asfortranarray(matrix[below, own]), side=1, lower=1, trans_a=1, overwrite_b=1)
        matrix[below, own] = panel
        for first in range(below.start, len(matrix), SIDE):
            columns = slice(first, min(first + SIDE, len(matrix)))
            mine = panel[first - below.start : columns.stop - below.start]
            matrix[columns, columns] -= np.tril(mine @ mine.T)
            rows = slice(columns.stop, len(matrix))
            matrix[rows, columns] -= panel[columns.stop - below.start :] @ mine.T
        if clean:
            matrix[own, below] = 0
    return True


def invert_in_place(matrix: Matrix) -> bool:
    """Replace the lower triangle by that of the inverse; False: the matrix is not positive definite.

    What lies above the diagonal is of no use then.

    Args:
        matrix: float32 or float64 [n, n], Fortran order.
    """
    if not factor_in_place(matrix):
        return False
    if len(matrix) <= WHOLE_ITEMS:
        (potri,) = get_lapack_funcs(("potri",), (matrix,))
        _, failed = potri(matrix, lower=1, overwrite_c=1)
        return not failed
    _invert_factor(matrix)
    _square_factor(matrix)
    return True


def _invert_factor(matrix: Matrix) -> None:
    """L by its inverse, from the last block to the first."""
    (trtri,), (trsm,) = get_lapack_funcs(("trtri",), (matrix,)), get_blas_funcs(("trsm",), (matrix,))
    for own, below in reversed(list(_blocks(len(matrix)))):
        corner = np.tril(matrix[own, own])
        panel = -trsm(1.0, corner, np.asfortranarray(matrix[below, own]), side=1, lower=1)
        for first in range(below.start, len(matrix), SIDE):
            rows = slice(first, min(first + SIDE, len(matrix)))
            square = np.tril(matrix[rows, rows])
            before = matrix[rows, below.start : first] @ panel[: first - below.start]
            matrix[rows, own] = before + square @ panel[first - below.start : rows.stop - below.start]
        matrix[own, own] = trtri(corner, lower=1)[0]


def _square_factor(matrix: Matrix) -> None:
    """L⁻¹ by L⁻ᵀ·L⁻¹, from the first block to the last: a block of rows is read last by its own turn."""
    for own, below in _blocks(len(matrix)):
        corner = np.tril(matrix[own, own])
        for first in range(0, own.start, SIDE):
            columns = slice(first, first + SIDE)
            product = corner.T @ matrix[own, columns]
            matrix[own, columns] = product + matrix[below, own].T @ matrix[below, columns]
        matrix[own, own] = corner.T @ corner + matrix[below, own].T @ matrix[below, own]


def _blocks(items: int) -> list[tuple[slice, slice]]:
    """(a block, what lies below it)"""
    starts = range(0, items, SIDE)
    return [(slice(first, min(first + SIDE, items)), slice(min(first + SIDE, items), items)) for first in starts]
