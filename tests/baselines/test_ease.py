from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import hse_dist.baselines.ease as ease
from hse_dist.baselines.ease import GRID, climb, evaluate_ease, fit_ease
from hse_dist.data.popularity import thirds
from hse_dist.errors import ConfigError, DataError, NumericError, ResourceError
from hse_dist.evaluate.metrics import DEPTH, Metrics


@dataclass
class Folder:
    """What EASE asks of prepared data, made up: users like items of one of a few kinds, popular ones more often."""

    items: int = 130
    sizes: dict[str, int] = field(default_factory=lambda: {"train": 400, "valid": 50, "test": 45})

    def __post_init__(self) -> None:
        generator = np.random.default_rng(0)
        kind = generator.integers(0, 5, self.items)
        weight = 1 / (np.arange(self.items) + 5.0)
        self.parts: dict[str, tuple[sp.csr_matrix, sp.csr_matrix]] = {}
        for split, users in self.sizes.items():
            likes = generator.integers(0, 5, users)[:, None] == kind
            chosen = generator.random((users, self.items)) < np.where(likes, 5.0, 0.6) * weight
            chosen[:, 0] = chosen[:, 1] = True
            target = chosen & (generator.random(chosen.shape) < 0.2)
            target[:, 0], target[:, 1] = split != "train", False
            self.parts[split] = tuple(sp.csr_matrix(m.astype(np.float32)) for m in (chosen & ~target, target))

    def users(self, split: str) -> int:
        return self.sizes[split]

    def matrix(self, split: str) -> sp.csr_matrix:
        return self.parts[split][0]

    def targets(self, split: str) -> sp.csr_matrix:
        return self.parts[split][1]

    def counts(self) -> np.ndarray:
        return np.sort(np.asarray(self.parts["train"][0].sum(0), np.int64).ravel())[::-1]


@pytest.fixture(scope="module")
def folder() -> Folder:
    return Folder()


def paper(x: sp.csr_matrix, regularization: float) -> np.ndarray:
    """The listing of the paper."""
    gram = (x.T @ x).toarray().astype(np.float64)
    gram[np.diag_indices(len(gram))] += regularization
    p = np.linalg.inv(gram)
    b = p / -np.diag(p)
    b[np.diag_indices(len(b))] = 0
    return b


@pytest.mark.parametrize(("dtype", "accuracy"), [(np.float64, 1e-6), (np.float32, 2e-4)])
@pytest.mark.parametrize("side", [1024, 130, 48])
def test_scores_are_those_of_the_paper(folder, monkeypatch, dtype, accuracy: float, side: int) -> None:
    monkeypatch.setattr(ease, "_SIDE", side)
    x, inputs = folder.matrix("train"), folder.matrix("test")
    model = fit_ease(x, 20.0, dtype)
    assert model.inverse.dtype == dtype and model.inverse.flags.c_contiguous
    np.testing.assert_array_equal(model.inverse, model.inverse.T)
    unseen = inputs.toarray() == 0
    scores = model.scores(inputs)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores[unseen], (inputs @ paper(x, 20.0))[unseen], atol=accuracy)


def test_the_fit_takes_one_matrix(folder, monkeypatch) -> None:
    """LAPACK must overwrite what it is given: a copy would double the memory of a large catalogue."""
    made: list[np.ndarray] = []
    gram = ease._gram
    monkeypatch.setattr(ease, "_gram", lambda *arguments: made.append(gram(*arguments)) or made[-1])
    for dtype in (np.float32, np.float64):
        assert np.shares_memory(fit_ease(folder.matrix("train"), 20.0, dtype).inverse, made[-1])


def slow_metrics(folder: Folder, split: str, regularization: float) -> Metrics:
    inputs, targets = folder.matrix(split), folder.targets(split)
    scores = (inputs @ paper(folder.matrix("train"), regularization)).astype(np.float64)
    scores[inputs.toarray() > 0] = -np.inf
    top = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    top = np.where(np.isneginf(np.take_along_axis(scores, top, 1)), -1, top)
    metrics = Metrics(thirds(folder.counts()))
    metrics.add(top, targets.indptr.astype(np.int64), targets.indices.astype(np.int64), np.arange(len(top)))
    return metrics


@pytest.mark.parametrize("users", [1000, 7])
def test_the_metrics_are_those_of_slow_ranking(folder, users: int) -> None:
    result, per_user = evaluate_ease(folder, "test", regularization=50.0, users=users)
    expected = slow_metrics(folder, "test", 50.0)
    assert {key: result[key] for key in expected.result()} == expected.result()
    for name, values in expected.per_user().items():
        np.testing.assert_array_equal(per_user[name], values)
    assert 0.2 < result["ndcg@100"] < 1.0
    assert (result["bytes_per_item"], result["live_entries"], result["regularization"]) == (520, 130 * 130, 50.0)
    assert result["seconds"] > 0 and result["validation"] == {}


@pytest.mark.parametrize("split", ["test", "valid"])
def test_regularization_is_chosen_on_validation(folder, split: str) -> None:
    result, _ = evaluate_ease(folder, split)
    every = {value: slow_metrics(folder, "valid", value).result()["ndcg@100"] for value in GRID}
    assert result["regularization"] == max(every, key=every.__getitem__)
    assert result["validation"] == {
        f"{value:g}": every[value] for value in GRID if f"{value:g}" in result["validation"]
    }
    assert f"{result['regularization']:g}" in result["validation"]
    assert result["ndcg@100"] == slow_metrics(folder, split, result["regularization"]).result()["ndcg@100"]


@given(st.integers(1, 15).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1), st.integers(0, n - 1))))
def test_climbing_finds_the_peak_and_asks_once(case: tuple[int, int, int]) -> None:
    size, peak, start = case
    asked: list[int] = []

    def value(index: int) -> float:
        asked.append(index)
        return -abs(index - peak) + 0.1 * (index > peak)

    assert climb(value, size, start) == peak
    assert len(asked) == len(set(asked)) <= abs(peak - start) + 3


def test_what_cannot_be_fitted_is_refused(folder, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="above 0, not 0"):
        evaluate_ease(folder, "test", regularization=0.0)
    with pytest.raises(NumericError, match="not positive definite in float32"):
        fit_ease(sp.csr_matrix(np.ones((5, 4), np.float32)), 1e-12, np.float32)
    with pytest.raises(DataError, match="'valid' has no users"):
        evaluate_ease(Folder(sizes={"train": 5, "valid": 0, "test": 5}), "test")
    assert evaluate_ease(Folder(sizes={"train": 5, "valid": 0, "test": 5}), "test", regularization=1.0)
    monkeypatch.setattr(ease, "available_memory", lambda: 2**20)
    with pytest.raises(ResourceError, match=r"EASE of 130 items needs .* GiB"):
        evaluate_ease(folder, "test", regularization=5.0)
