"""Small histories for the starts: long tail, an item nobody trains on, two ranges of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse as ss

from hse_dist.data.prepared import HistoryBlock


class SmallHistories:
    """Stands in for `Prepared`: what a start asks of it, from a matrix."""

    def __init__(self, matrix: ss.csr_matrix) -> None:
        self.items = matrix.shape[1]
        self.manifest: dict[str, Any] = {"items": self.items, "interactions": int(matrix.nnz)}
        self._matrix = matrix

    def counts(self) -> np.ndarray:
        return np.bincount(self._matrix.indices, minlength=self.items).astype(np.int64)

    def matrix(self, split: str) -> ss.csr_matrix:
        assert split == "train"
        return self._matrix

    def scan(self, split: str, batch_users: int = 64) -> Iterator[HistoryBlock]:
        x = self.matrix(split)
        whole = HistoryBlock(x.indptr.astype(np.int64), x.indices.astype(np.int64))
        return (whole.slice(n, min(n + batch_users, len(whole))) for n in range(0, len(whole), batch_users))


def _histories(users: int, items: int, seed: int = 0) -> SmallHistories:
    """Users of five kinds like different items; popularity falls; the last item has no interactions."""
    rng = np.random.default_rng(seed)
    chance = 0.7 / (1 + 0.15 * np.arange(items)) * (0.3 + 2.0 * rng.random((5, items)) ** 4)
    x = rng.random((users, items)) < np.minimum(chance, 0.9)[rng.integers(0, 5, users)]
    x[:, -1] = False
    return SmallHistories(ss.csr_matrix(x[:, np.argsort(-x.sum(0), kind="stable")].astype(np.float32)))


@pytest.fixture
def histories() -> SmallHistories:
    return _histories(400, 50)


@pytest.fixture
def many_histories() -> SmallHistories:
    """More items than a range has rows."""
    rng = np.random.default_rng(0)
    items = 9000
    liked = np.minimum((rng.pareto(0.7, 40_000) * 20).astype(np.int64), items - 1)
    x = ss.csr_matrix((np.ones(len(liked), np.float32), (rng.integers(0, 4000, len(liked)), liked)), (4000, items))
    x.data[:] = 1
    return SmallHistories(x[:, np.argsort(-np.asarray(x.sum(0)).ravel(), kind="stable")].tocsr())


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks stay in this process, where tests change modules, even while other tests' cluster runs."""
    if request.node.get_closest_marker("ray") is None:
        monkeypatch.setattr("hse_dist.tasks.ray_is_running", lambda: False)


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> int:
    """Seven rows a file, so that small tables have several ranges."""
    for module in ("folder", "triples"):
        monkeypatch.setattr(f"hse_dist.sparsity.start.{module}.RANGE_ROWS", 7)
    return 7


@pytest.fixture
def ease() -> Callable[[np.ndarray, float], np.ndarray]:
    """EASE's item × item weights by the textbook (Steck, WWW 2019), float64."""

    def weights(x: np.ndarray, regularization: float) -> np.ndarray:
        inverse = np.linalg.inv(x.T @ x + regularization * np.eye(x.shape[1]))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0.0)
        return weights

    return weights
