"""Factors and inverses by blocks against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from hse_dist.sparsity.start import dense_inverse
from hse_dist.sparsity.start.dense_inverse import factor_in_place, invert_in_place


def matrix_of(items: int, dtype: type) -> np.ndarray:
    rng = np.random.default_rng(items)
    half = rng.normal(size=(items, 2 * items))
    return np.asfortranarray((half @ half.T / items + np.eye(items)).astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("items", [1, 7, 8, 9, 40])
def test_blocks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch, items: int, dtype: type) -> None:
    monkeypatch.setattr(dense_inverse, "SIDE", 8)
    matrix, close = matrix_of(items, dtype), {"rtol": 1e-3 if dtype is np.float32 else 1e-9, "atol": 1e-5}
    for whole in (10**6, 0):
        monkeypatch.setattr(dense_inverse, "WHOLE_ITEMS", whole)
        factor, inverse = matrix.copy(order="F"), matrix.copy(order="F")
        kept = matrix.copy(order="F")
        assert factor_in_place(factor, clean=True) and factor_in_place(kept) and invert_in_place(inverse)
        np.testing.assert_array_equal(np.triu(kept, 1), np.triu(matrix, 1))
        np.testing.assert_array_equal(np.tril(kept), factor)
        np.testing.assert_allclose(factor, np.linalg.cholesky(matrix), **close)
        np.testing.assert_allclose(np.tril(inverse), np.tril(np.linalg.inv(matrix)), **close)


@pytest.mark.parametrize("whole", [10**6, 0])
def test_what_is_not_positive_definite_is_told(monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    monkeypatch.setattr(dense_inverse, "SIDE", 8)
    monkeypatch.setattr(dense_inverse, "WHOLE_ITEMS", whole)
    matrix = matrix_of(30, np.float64)
    matrix[25, 25] = -1.0
    assert not factor_in_place(matrix.copy(order="F")) and not invert_in_place(matrix)
