from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import hse_dist.baselines.ease as ease
import hse_dist.baselines.fitting as fitting
from hse_dist.baselines.closed_forms import GRID
from hse_dist.baselines.ease import fit_ease
from hse_dist.baselines.fitting import climb
from hse_dist.baselines.registry import evaluate_baseline
from hse_dist.errors import ConfigError, DataError, NumericError, ResourceError
from hse_dist.evaluate.metrics import Metrics
from hse_dist.testing.folder import Folder, slow_ease, slow_ranking


@pytest.fixture(scope="module")
def folder() -> Folder:
    return Folder()


@pytest.mark.parametrize(("dtype", "accuracy"), [(np.float64, 1e-6), (np.float32, 2e-4)])
@pytest.mark.parametrize("side", [1024, 130, 48])
def test_scores_are_those_of_the_slow_ease(folder, monkeypatch, dtype, accuracy: float, side: int) -> None:
    monkeypatch.setattr(ease, "_SIDE", side)
    x, inputs = folder.matrix("train"), folder.matrix("test")
    model = fit_ease(x, 20.0, dtype)
    assert model.inverse.dtype == dtype and model.inverse.flags.c_contiguous
    np.testing.assert_array_equal(model.inverse, model.inverse.T)
    unseen = inputs.toarray() == 0
    scores = model.scores(inputs)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores[unseen], (inputs @ slow_ease(x, 20.0))[unseen], atol=accuracy)


def test_the_fit_takes_one_matrix(folder, monkeypatch) -> None:
    """LAPACK must overwrite what it is given: a copy would double the memory of a large catalogue."""
    made: list[np.ndarray] = []
    gram = ease._gram
    monkeypatch.setattr(ease, "_gram", lambda *arguments: made.append(gram(*arguments)) or made[-1])
    for dtype in (np.float32, np.float64):
        assert np.shares_memory(fit_ease(folder.matrix("train"), 20.0, dtype).inverse, made[-1])


def slow_metrics(folder: Folder, split: str, regularization: float) -> Metrics:
    return slow_ranking(folder, split, folder.matrix(split) @ slow_ease(folder.matrix("train"), regularization))


@pytest.mark.parametrize("users", [1000, 7])
def test_the_metrics_are_those_of_slow_ranking(folder, users: int) -> None:
    result, per_user = evaluate_baseline("ease", folder, "test", regularization=50.0, users=users)
    expected = slow_metrics(folder, "test", 50.0)
    assert {key: result[key] for key in expected.result()} == expected.result()
    for name, values in expected.per_user().items():
        np.testing.assert_array_equal(per_user[name], values)
    assert 0.2 < result["ndcg@100"] < 1.0
    assert (result["bytes_per_item"], result["live_entries"]) == (520, 130 * 130)
    assert result["chosen"] == {"regularization": 50.0}
    assert result["seconds"] > 0 and result["validation"] == {}


@pytest.mark.parametrize("split", ["test", "valid"])
def test_regularization_is_chosen_on_validation(folder, split: str) -> None:
    result, _ = evaluate_baseline("ease", folder, split)
    every = {value: slow_metrics(folder, "valid", value).result()["ndcg@100"] for value in GRID}
    assert result["chosen"]["regularization"] == max(every, key=every.__getitem__)
    assert result["validation"] == {
        f"{value:g}": every[value] for value in GRID if f"{value:g}" in result["validation"]
    }
    assert f"{result['chosen']['regularization']:g}" in result["validation"]
    assert result["ndcg@100"] == slow_metrics(folder, split, result["chosen"]["regularization"]).result()["ndcg@100"]


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
        evaluate_baseline("ease", folder, "test", regularization=0.0)
    with pytest.raises(NumericError, match="not positive definite in float32"):
        fit_ease(sp.csr_matrix(np.ones((5, 4), np.float32)), 1e-12, np.float32)
    with pytest.raises(DataError, match="'valid' has no users"):
        evaluate_baseline("ease", Folder(sizes={"train": 5, "valid": 0, "test": 5}), "test")
    assert evaluate_baseline("ease", Folder(sizes={"train": 5, "valid": 0, "test": 5}), "test", regularization=1.0)
    monkeypatch.setattr(fitting, "available_memory", lambda: 2**20)
    with pytest.raises(ResourceError, match=r"EASE of 130 items needs .* GiB"):
        evaluate_baseline("ease", folder, "test", regularization=5.0)
