"""The compiled kernels of retrieval give what the plain path gives, bit by bit."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from hse_dist.export import sweep
from hse_dist.export.format import Export
from hse_dist.export.recommender import Recommender

ITEMS, DIMS, USERS = 700, 90, 45

CALL = sweep.call

pytestmark = pytest.mark.skipif(sweep.library() is None, reason="the compiled kernels were not built")


def matrix_of(rng: np.random.Generator) -> sp.csr_matrix:
    """Rows of 0 to 12 entries of very different size, so that the order of a sum shows."""
    dense = rng.standard_normal((ITEMS, DIMS)) * 10.0 ** rng.integers(-4, 5, (ITEMS, DIMS))
    dense *= rng.random((ITEMS, DIMS)) < 6 / DIMS
    dense[::50] = 0.0
    matrix = sp.csr_matrix(dense.astype(np.float32))
    matrix.sort_indices()
    return matrix


def histories_of(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    lengths = rng.integers(0, 20, USERS)
    lengths[3] = 0
    return np.concatenate([[0], np.cumsum(lengths)]), rng.integers(0, ITEMS, lengths.sum())


def export_of(rng: np.random.Generator) -> Export:
    gains = rng.choice(np.array([-1.0, 0.3, 1.0], np.float32), ITEMS)
    return Export(pa.array(np.arange(ITEMS)), matrix_of(rng), gains, {})


@pytest.mark.parametrize("way", ["items", "columns"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("k", [1, 100, ITEMS])
def test_both_ways_equal_the_plain_path(monkeypatch, way, threads, k):
    export, asked = export_of(np.random.default_rng(k)), histories_of(np.random.default_rng(7))
    called = []
    monkeypatch.setattr(sweep, "call", lambda name, *rest: called.append(name) or CALL(name, *rest))
    monkeypatch.setattr(sweep.Sweep, "_cost", lambda self, users: (0, 1) if way == "items" else (1, 0))
    found = Recommender(export, threads).recommend_rows(*asked, k)
    assert called == [f"hse_top_by_{way}"]
    for ours, plain in zip(found, Recommender(export, kernels=False).recommend_rows(*asked, k), strict=True):
        np.testing.assert_array_equal(ours.view(np.uint32), plain.view(np.uint32))


def test_way_that_reads_fewer_entries_is_taken(monkeypatch):
    called = []
    monkeypatch.setattr(sweep, "call", lambda name, *rest: called.append(name))
    matrix = sp.csr_matrix(np.ones((100, 8), np.float32))
    ours = sweep.Sweep(matrix, np.ones(100, np.float32))
    # two of eight columns: a user reads a quarter of the entries by columns, and all of them by items with 31 others
    user = sp.csr_matrix(np.eye(8, dtype=np.float32)[:2].sum(0)[None])
    for users in (1, 3, 4, 32, 33):
        ours.top(sp.vstack([user] * users).tocsr(), sp.csr_matrix((users, 100), dtype=np.float32), 5)
    assert [name.removeprefix("hse_top_by_") for name in called] == ["columns", "columns", "items", "items", "items"]
