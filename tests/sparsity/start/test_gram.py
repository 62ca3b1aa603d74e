"""The lower triangle of the co-occurrence matrix, against the dense product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as ss

from hse_dist.sparsity.start.gram import lower_blocks, open_co_occurrence, write_co_occurrence


@pytest.mark.parametrize("products", [1, 500, 10**9])
def test_blocks_add_up_to_the_triangle(histories, products: int) -> None:
    x = histories.matrix("train")
    blocks = list(lower_blocks(x, products))
    assert len(blocks) == {1: x.shape[1], 10**9: 1}.get(products, len(blocks))
    assert [first for first, _ in blocks] == np.cumsum([0, *(block.shape[0] for _, block in blocks)])[:-1].tolist()
    whole = ss.vstack([block for _, block in blocks])
    np.testing.assert_array_equal(whole.toarray(), np.tril((x.T @ x).toarray(), -1))
    assert whole.has_sorted_indices and whole.data.min() > 0


def test_what_is_written_is_opened(histories, tmp_path: Path) -> None:
    x = histories.matrix("train")
    write_co_occurrence(x, tmp_path / "gram")
    pairs = open_co_occurrence(tmp_path / "gram")
    dense = (x.T @ x).toarray()
    np.testing.assert_array_equal(pairs.counts, np.diag(dense))
    triangle = ss.csr_array((pairs.shared, pairs.columns, pairs.offsets), shape=dense.shape)
    np.testing.assert_array_equal(triangle.toarray(), np.tril(dense, -1))


def test_items_that_share_no_users(tmp_path: Path) -> None:
    write_co_occurrence(ss.csr_matrix(np.eye(3, dtype=np.float32)), tmp_path / "gram")
    pairs = open_co_occurrence(tmp_path / "gram")
    assert len(pairs.columns) == len(pairs.shared) == 0 and pairs.counts.tolist() == [1, 1, 1]
