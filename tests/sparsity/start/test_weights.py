"""What histories of each length count for."""

from __future__ import annotations

import numpy as np
import pytest

from hse_dist.sparsity.start.weights import UNIT, count_lengths, weights_by_length


def test_weights_fall_with_the_length_and_have_a_mean() -> None:
    lengths = np.array([0, 1, 4, 16, 64, 256])
    weights = weights_by_length(np.bincount(lengths), 0.5)[lengths]
    assert weights.dtype == np.int64
    assert weights[0] == weights[1] > weights[2] > weights[3] > weights[4] > weights[5] >= 1
    np.testing.assert_allclose(weights[1] / weights[4], 8, rtol=0.02)
    np.testing.assert_allclose(weights @ np.maximum(lengths, 1) / np.maximum(lengths, 1).sum(), UNIT, rtol=0.02)
    assert (weights_by_length(np.bincount(lengths), 0.0) == UNIT).all()


def test_a_history_without_end_still_counts() -> None:
    assert weights_by_length(np.bincount([1, 10**6]), 1.0)[[1, 10**6]].tolist() == [2**20, 32]


@pytest.mark.parametrize("users", [1, 64, 1000])
def test_lengths_are_counted_block_by_block(histories, users: int) -> None:
    lengths = np.diff(histories.matrix("train").indptr)
    np.testing.assert_array_equal(count_lengths(histories.scan("train", users)), np.bincount(lengths))


def test_no_histories_have_no_lengths() -> None:
    assert count_lengths([]).tolist() == [0]
