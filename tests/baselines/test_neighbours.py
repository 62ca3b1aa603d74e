"""Popularity and item-kNN: by hand, and against a dense reference."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

import hse_dist.baselines.neighbours as neighbours
from hse_dist.baselines.neighbours import similar_items, strongest_of_rows
from hse_dist.baselines.registry import evaluate_baseline
from hse_dist.testing.folder import Folder, slow_ranking


@pytest.fixture(scope="module")
def folder() -> Folder:
    return Folder()


def slow_similarity(x: sp.csr_matrix, shrinkage: float) -> np.ndarray:
    shared = (x.T @ x).toarray().astype(np.float64)
    counts = np.diag(shared).copy()
    np.fill_diagonal(shared, 0)
    return np.divide(shared, np.sqrt(np.outer(counts, counts)) + shrinkage, where=shared > 0, out=np.zeros_like(shared))


def test_similarity_by_hand() -> None:
    # items 0 and 1 share two of their users, 0 and 2 one; item 3 has no user
    x = sp.csr_matrix(np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]], np.float32))
    expected = np.zeros((4, 4), np.float32)
    expected[0, 1] = expected[1, 0] = 2 / (np.sqrt(4 * 2) + 10)
    expected[2, 1] = 1 / (np.sqrt(2 * 1) + 10)
    np.testing.assert_allclose(similar_items(x, 1, 10.0).toarray(), expected)


@pytest.mark.parametrize("products", [2**24, 1])
@pytest.mark.parametrize(("most", "shrinkage"), [(130, 0.0), (7, 5.0)])
def test_similarity_is_that_of_a_dense_reference(
    folder, monkeypatch, products: int, most: int, shrinkage: float
) -> None:
    monkeypatch.setattr(neighbours, "_PRODUCTS", products)
    x = folder.matrix("train")
    found, expected = similar_items(x, most, shrinkage), slow_similarity(x, shrinkage)
    kept = found.toarray() > 0
    np.testing.assert_allclose(found.toarray()[kept], expected[kept], rtol=1e-6)
    for row, part in zip(found.toarray(), expected, strict=True):
        np.testing.assert_allclose(np.sort(row)[::-1][:most], np.sort(part)[::-1][:most], rtol=1e-6)
    assert found.getnnz(1).max() <= most and found.dtype == np.float32


def test_of_equal_entries_the_lower_columns_are_kept() -> None:
    block = sp.csr_matrix(np.array([[3, 1, 0, 1, 2, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]], np.float32))
    kept = strongest_of_rows(block, 3).toarray()
    np.testing.assert_array_equal(kept, [[3, 1, 0, 0, 2, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]])


@pytest.mark.parametrize("split", ["test", "valid"])
def test_shrinkage_is_chosen_on_validation(folder, split: str) -> None:
    result, users = evaluate_baseline("item-knn", folder, split, bytes_per_item=80)
    chosen, tried = result["chosen"], result["validation"]
    assert chosen["neighbours"] == 10 and tried[f"{chosen['shrinkage']:g}"] == max(tried.values())
    weights = similar_items(folder.matrix("train"), 10, chosen["shrinkage"])
    assert result["live_entries"] == weights.nnz <= 1300 and result["bytes_per_item"] == 8 * weights.nnz / 130
    expected = slow_ranking(folder, split, folder.matrix(split).toarray() @ weights.T.toarray())
    assert result["ndcg@100"] == pytest.approx(expected.result()["ndcg@100"], abs=1e-3)
    assert len(users["user"]) == folder.users(split)


def test_as_many_neighbours_as_validation_likes(folder) -> None:
    result, _ = evaluate_baseline("item-knn-full", folder, "valid")
    chosen = result["chosen"]
    assert result["ndcg@100"] == result["validation"][str(chosen["neighbours"])] == max(result["validation"].values())
    sized, _ = evaluate_baseline("item-knn", folder, "valid", bytes_per_item=8 * chosen["neighbours"])
    assert sized["ndcg@100"] == result["ndcg@100"] and sized["chosen"] == chosen


def test_popularity(folder) -> None:
    result, _ = evaluate_baseline("popularity", folder, "test", bytes_per_item=64)
    expected = slow_ranking(folder, "test", np.tile(folder.counts().astype(np.float64), (45, 1))).result()
    assert {key: result[key] for key in expected} == expected
    assert (result["bytes_per_item"], result["chosen"], result["validation"]) == (4.0, {}, {})
