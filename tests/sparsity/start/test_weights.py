"""Weights of users, and the co-occurrence of weighted users against the dense product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as ss

from hse_dist.errors import ResourceError
from hse_dist.sparsity.start.gram import open_co_occurrence, write_co_occurrence
from hse_dist.sparsity.start.weights import UNIT, user_weights, write_weighted


def test_weights_fall_with_the_length_and_have_a_mean() -> None:
    lengths = np.array([0, 1, 4, 16, 64, 256])
    weights = user_weights(lengths, 0.5)
    assert weights.dtype == np.int32
    assert weights[0] == weights[1] > weights[2] > weights[3] > weights[4] > weights[5] >= 1
    np.testing.assert_allclose(weights[1] / weights[4], 8, rtol=0.02)
    np.testing.assert_allclose(weights @ np.maximum(lengths, 1) / np.maximum(lengths, 1).sum(), UNIT, rtol=0.02)
    assert (user_weights(lengths, 0.0) == UNIT).all()


def test_a_history_without_end_still_counts() -> None:
    assert user_weights(np.array([1, 10**9]), 1.0).tolist() == [2**20, 32]


@pytest.mark.parametrize("products", [1, 500, 10**9])
def test_blocks_make_the_weighted_triangle(histories, tmp_path: Path, products: int) -> None:
    x = histories.matrix("train")
    weights = user_weights(np.diff(x.indptr), 0.5)
    write_weighted(x, weights, tmp_path / "gram", products)
    pairs = open_co_occurrence(tmp_path / "gram")
    dense = x.toarray().astype(np.int64)
    gram = (dense.T * weights) @ dense
    np.testing.assert_array_equal(pairs.counts, np.diag(gram))
    triangle = ss.csr_array((pairs.shared, pairs.columns, pairs.offsets), shape=gram.shape)
    np.testing.assert_array_equal(triangle.toarray(), np.tril(gram, -1))
    assert triangle.has_canonical_format and pairs.shared.min() > 0


def test_equal_weights_write_the_files_of_plain_counts(histories, tmp_path: Path) -> None:
    x = histories.matrix("train")
    write_weighted(x, np.ones(x.shape[0], np.int32), tmp_path / "weighted")
    write_co_occurrence(x, tmp_path / "plain")
    for path in sorted((tmp_path / "plain").iterdir()):
        assert path.read_bytes() == (tmp_path / "weighted" / path.name).read_bytes()


def test_a_sum_beyond_int32_is_refused(tmp_path: Path) -> None:
    x = ss.csr_matrix(np.ones((3, 2), np.float32))
    with pytest.raises(ResourceError, match=r"3221225469.*history_power"):
        write_weighted(x, np.full(3, 2**30 - 1, np.int32), tmp_path / "gram")
    assert not list(tmp_path.iterdir())
