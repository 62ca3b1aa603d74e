"""The exact start: before the cut it is EASE."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as ss

from hse_dist.errors import NumericError
from hse_dist.sparsity.start.hse import factorize, strongest_entries


def scores(factor: np.ndarray, gains: np.ndarray, x: np.ndarray) -> np.ndarray:
    """g_j · (u · A_j - [j in x] · ‖A_j‖²) for all users and items."""
    return ((x @ factor) @ factor.T - x * (factor**2).sum(1)) * gains


def test_the_uncut_factor_scores_like_ease(histories, ease) -> None:
    matrix = histories.matrix("train")
    factor, gains, multiple = factorize(matrix, 5.0)
    assert multiple == 2
    np.testing.assert_array_equal(factor, np.tril(factor))
    x = matrix.toarray().astype(np.float64)
    np.testing.assert_allclose(scores(factor, gains, x), x @ ease(x, 5.0), rtol=1e-9, atol=1e-10)


def test_a_larger_diagonal_is_taken_where_two_is_not_enough(ease) -> None:
    # a hub whose users spread over six leaves: 2 · diag(d) - P has a negative eigenvalue
    x = np.repeat(np.hstack([np.ones((6, 1)), np.eye(6)]), 10, axis=0)
    factor, gains, multiple = factorize(ss.csr_matrix(x.astype(np.float32)), 0.01)
    assert multiple > 2
    np.testing.assert_allclose(scores(factor, gains, x), x @ ease(x, 0.01), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("block_rows", [1, 7, 1000])
def test_the_strongest_entries_of_each_row(histories, block_rows: int) -> None:
    factor, _, _ = factorize(histories.matrix("train"), 5.0)
    kept = np.zeros_like(factor)
    for part in strongest_entries(factor, 6, block_rows):
        kept[part.rows, part.columns] = part.values
    for row, expected in zip(kept, factor, strict=True):
        order = np.argsort(-np.abs(expected))[:6]
        np.testing.assert_array_equal(row[order], expected[order].astype(np.float32))
        assert np.count_nonzero(row) == min(6, np.count_nonzero(expected.astype(np.float32)))


def test_a_singular_gram_matrix_names_the_setting() -> None:
    with pytest.raises(NumericError, match=r"sparsity\.hse\.regularization = 1e-300"):
        factorize(ss.csr_matrix(np.ones((4, 2), np.float32)), 1e-300)
