"""EASE pruned and HSE: what is kept, how it ranks, and that a factorization is made once."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

import hse_dist.baselines.factors as factors
import hse_dist.sparsity.start.hse as start
from hse_dist.baselines.closed_forms import first_guess, strongest_of_all, strongest_of_item
from hse_dist.baselines.factors import Factors
from hse_dist.baselines.registry import evaluate_baseline
from hse_dist.errors import ConfigError, DataError
from hse_dist.testing.folder import Folder, slow_ease, slow_ranking

METRICS = ("ndcg@100", "recall@20", "recall@50", "coverage")
LAMBDA = 20.0


@pytest.fixture(scope="module")
def folder() -> Folder:
    return Folder()


def slow_factor(x: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    p = np.linalg.inv((x.T @ x).toarray().astype(np.float64) + LAMBDA * np.eye(x.shape[1]))
    return np.linalg.cholesky(2 * np.diag(np.diag(p)) - p), 1 / np.diag(p)


def cut(kept: sp.csr_matrix, matrix: np.ndarray, most: int) -> np.ndarray:
    """`matrix` where `kept` has entries, which are to be the `most` largest |entries| of each row (or equal ones)."""
    pattern = kept.toarray() != 0
    np.testing.assert_allclose(kept.toarray()[pattern], matrix[pattern], rtol=1e-5)
    strengths = [np.sort(np.abs(part), axis=1)[:, -most:] for part in (kept.toarray(), matrix)]
    np.testing.assert_allclose(*strengths, rtol=1e-5)
    return np.where(pattern, matrix, 0)


@pytest.mark.parametrize("most", [4, 17])
def test_models_are_those_of_slow_references(folder, most: int) -> None:
    x, inputs = folder.matrix("train"), folder.matrix("test")
    sketch = Factors(folder).sketch(LAMBDA)
    cut(strongest_of_item(sketch.weights, most), slow_ease(x, LAMBDA).T, most)
    factor, gains = slow_factor(x)
    rows = cut(strongest_of_item(sketch.factor, most), factor, most)
    expected = slow_ranking(folder, "test", (inputs @ rows) @ rows.T * gains)
    result, users = evaluate_baseline("hse", folder, "test", bytes_per_item=8 * most, regularization=LAMBDA)
    assert [result[key] for key in METRICS] == pytest.approx([expected.result()[key] for key in METRICS], abs=1e-3)
    assert users["ndcg@100"].shape == (45,)
    # the first rows of a lower triangle are short, and items that share no user with others have nothing else
    assert 120 * most < result["live_entries"] == np.count_nonzero(rows) <= most * 130 - most * (most - 1) // 2
    assert result["bytes_per_item"] == 8 * result["live_entries"] / 130


def test_the_factor_is_that_of_our_own_start(folder) -> None:
    x = folder.matrix("train")
    expected, gains, multiple = start.factorize(x, LAMBDA)
    model = factors.fit_ease(x, LAMBDA, np.float64)
    np.testing.assert_allclose(-model.scale, gains)
    assert multiple == 2
    np.testing.assert_allclose(np.tril(factors.factorize(model)), expected, atol=1e-12)


def test_weights_kept_globally_are_the_largest_of_all(folder) -> None:
    sketch = Factors(folder).sketch(LAMBDA)
    kept = strongest_of_all(sketch.weights, 5)
    weights = slow_ease(folder.matrix("train"), LAMBDA).T
    assert kept.nnz == 5 * 130
    threshold = np.sort(np.abs(weights), axis=None)[-5 * 130]
    pattern = kept.toarray() != 0
    np.testing.assert_allclose(kept.toarray()[pattern], weights[pattern], rtol=1e-5)
    assert np.abs(weights[pattern]).min() == pytest.approx(threshold)
    assert len(set(kept.getnnz(1))) > 5  # rows differ


@pytest.mark.parametrize("name", ["ease-pruned", "hse"])
def test_with_all_entries_it_ranks_as_ease(folder, name: str) -> None:
    full, _ = evaluate_baseline("ease", folder, "test", regularization=LAMBDA)
    result, _ = evaluate_baseline(name, folder, "test", bytes_per_item=8 * 130, regularization=LAMBDA)
    assert [result[key] for key in METRICS] == pytest.approx([full[key] for key in METRICS], abs=1e-3)


@pytest.mark.parametrize("budget", [64, 71])
def test_pruned_weights_keep_to_the_budget_and_to_the_better_variant(folder, budget: int) -> None:
    result, _ = evaluate_baseline("ease-pruned", folder, "valid", bytes_per_item=budget)
    assert result["live_entries"] == 8 * 130 and result["bytes_per_item"] == 64
    assert result["ndcg@100"] == max(result["validation"].values())
    assert result["validation"][f"{result['chosen']['regularization']:g}"] == result["ndcg@100"]
    rows = Factors(folder).sketch(result["chosen"]["regularization"]).weights
    scores = [folder.matrix("valid") @ kept(rows, 8).T.toarray() for kept in (strongest_of_item, strongest_of_all)]
    both = [slow_ranking(folder, "valid", part).result()["ndcg@100"] for part in scores]
    assert result["ndcg@100"] == pytest.approx(max(both), abs=1e-4)
    assert result["chosen"]["variant"] == ("item", "global")[int(np.argmax(both))]


def test_baselines_and_budgets_share_a_factorization(folder, tmp_path, monkeypatch) -> None:
    fitted: list[float] = []
    fit = factors.fit_ease
    monkeypatch.setattr(factors, "fit_ease", lambda x, value, dtype: fitted.append(value) or fit(x, value, dtype))
    calls = [("ease", None), ("ease-pruned", 64), ("ease-pruned", 32), ("hse", 64), ("hse", 32)]

    def run(shared: Factors | None) -> list[dict]:
        return [
            evaluate_baseline(name, folder, "test", bytes_per_item=size, factors=shared)[0]["chosen"]
            for name, size in calls
        ]

    first = run(Factors(folder, folder=tmp_path))
    assert len(fitted) == len(set(fitted)) == len(list(tmp_path.iterdir())) < 12
    assert Factors(folder, folder=tmp_path).known() == sorted(fitted)
    fitted.clear()
    assert run(Factors(folder, folder=tmp_path)) == first and fitted == []
    # other data do not take it for theirs
    Factors(Folder(fingerprint="other"), folder=tmp_path).sketch(200.0)
    assert fitted == [200.0]
    assert run(None)[0] == first[0]


def test_a_matrix_that_is_not_positive_definite_is_tried_with_a_larger_diagonal() -> None:
    p = 0.05 * np.eye(4) + 0.95
    model = factors.Ease(p.copy(), -1 / np.diag(p))
    assert np.linalg.eigvalsh(2 * np.diag(np.diag(p)) - p).min() < 0
    factor = np.tril(factors.factorize(model))
    product = factor @ factor.T
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(product[off], -p[off], atol=1e-12)
    assert product[0, 0] == pytest.approx(3 * p[0, 0])


def test_the_climb_begins_near_the_mean_count() -> None:
    means = {59.5: 200.0, 12.0: 20.0, 25.0: 50.0, 0.0: 1.0, 1e6: 5000.0}
    assert {mean: first_guess(np.full(7, mean)) for mean in means} == means


def test_what_cannot_be_sized_or_chosen_is_refused(folder, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="too small for hse: one entry takes 8"):
        evaluate_baseline("hse", folder, "test", bytes_per_item=7)
    monkeypatch.setattr("hse_dist.baselines.closed_forms.KEEP", 16)
    with pytest.raises(ConfigError, match="at most 16 entries an item, 136 bytes are 17"):
        evaluate_baseline("ease-pruned", folder, "test", bytes_per_item=136)
    empty = Folder(sizes={"train": 50, "valid": 0, "test": 5})
    with pytest.raises(DataError, match="'valid' has no users"):
        evaluate_baseline("ease-pruned", empty, "test", bytes_per_item=64, regularization=1.0)
    assert evaluate_baseline("hse", empty, "test", bytes_per_item=64, regularization=1.0)
