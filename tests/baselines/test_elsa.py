"""ELSA, dense and pruned: its gradient against autograd in float64, its schedule, its sizes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import hse_dist.baselines.elsa as elsa
import hse_dist.baselines.fitting as fitting
from hse_dist.baselines.elsa import Plan, entries_kept, gradient, scorer, strongest_mask, train
from hse_dist.baselines.fitting import Request
from hse_dist.baselines.registry import evaluate_baseline
from hse_dist.errors import ConfigError, DataError, ResourceError
from hse_dist.testing.folder import Folder, slow_ranking


@pytest.fixture(scope="module")
def folder() -> Folder:
    return Folder()


def slow_loss(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The loss of the paper over the whole catalogue."""
    n = weights / weights.norm(dim=1, keepdim=True)
    s = x @ (n @ n.T - torch.eye(len(n)))
    return (2 - 2 * torch.cosine_similarity(s, x, dim=1)).mean()


@pytest.mark.parametrize("kept", [12, 3])
def test_gradient_is_that_of_autograd(folder, kept: int) -> None:
    x = folder.matrix("train")[:40].astype(np.float64)
    weights = torch.randn(130, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = None if kept == 12 else strongest_mask(weights, kept)
    reference = weights.clone().requires_grad_()
    expected = slow_loss(torch.from_numpy(x.toarray()), reference if mask is None else reference * mask)
    expected.backward()
    loss, found = gradient(x, weights, mask)
    assert loss == pytest.approx(float(expected.detach()))
    torch.testing.assert_close(found, reference.grad, rtol=1e-9, atol=1e-12)
    assert found.abs().max() > 1e-4
    assert mask is None or (bool((mask.sum(1) == kept).all()) and bool((found[mask == 0] == 0).all()))


def test_histories_of_one_item_pull_nothing_apart() -> None:
    # without its own item a history of one has nothing to predict
    loss, found = gradient(sp.csr_matrix(np.eye(3, dtype=np.float32)), torch.randn(3, 2), None)
    assert loss == pytest.approx(2.0, abs=1e-6) and bool(torch.isfinite(found).all())


def test_entries_fall_from_all_to_k_and_stay() -> None:
    kept = [entries_kept(Plan(256, 8, 0.1), step / 100) for step in range(101)]
    assert kept[0] == 256 and kept[50] == round((256 * 8) ** 0.5) and kept[90] > 8
    assert kept[100] == entries_kept(Plan(256, 8, 0.1), 2.5) == 8
    assert kept == sorted(kept, reverse=True)
    assert {entries_kept(Plan(64, 64, 0.1), step / 10) for step in range(11)} == {64}


def test_training_is_that_of_a_slow_reference(folder, monkeypatch) -> None:
    monkeypatch.setattr(elsa, "EPOCHS", 4)
    monkeypatch.setattr(elsa, "PRUNE", 2)
    x = folder.matrix("train")
    trained = train(x, Plan(16, 4, 0.05), Request(folder, "valid", seed=3))
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(130, 16, generator=generator).requires_grad_()
    optimizer, step, rows = torch.optim.Adam([weights], lr=0.05), 0, {}
    dense = torch.from_numpy(x.toarray())
    for epoch in range(1, 5):
        order = torch.randperm(400, generator=generator)
        for users in order.split(64):
            kept = max(4, round(16 * (4 / 16) ** min(1.0, step / 14)))
            if step % 4 == 0:
                mask = strongest_mask(weights.detach(), kept) if kept < 16 else torch.ones_like(weights)
            optimizer.zero_grad()
            slow_loss(dense[users], weights * mask).backward()
            optimizer.step()
            step += 1
        final = (weights * strongest_mask(weights.detach(), 4)).detach().double().numpy()
        rows[epoch] = final / np.linalg.norm(final, axis=1, keepdims=True)
    np.testing.assert_allclose(trained.rows.toarray(), rows[trained.epoch], atol=2e-3)
    inputs = folder.matrix("valid")
    expected = slow_ranking(folder, "valid", inputs @ rows[trained.epoch] @ rows[trained.epoch].T)
    assert trained.value == pytest.approx(expected.result()["ndcg@100"], abs=5e-3)


def test_with_all_entries_pruning_is_the_dense_table(folder, monkeypatch) -> None:
    monkeypatch.setattr(elsa, "WIDE", 16)
    monkeypatch.setattr(elsa, "RATES", (0.05, 0.1, 0.2))
    pruned, _ = evaluate_baseline("gradual-topk", folder, "test", bytes_per_item=128, seed=1)
    dense, _ = evaluate_baseline("dense", folder, "test", bytes_per_item=64, seed=1)
    for result in (pruned, dense):
        result.pop("seconds")
    assert pruned == dense


def test_sizes_choices_and_seeds(folder, monkeypatch) -> None:
    monkeypatch.setattr(elsa, "EPOCHS", 4)
    monkeypatch.setattr(elsa, "PRUNE", 2)
    monkeypatch.setattr(elsa, "PROBE", 8)
    result, _ = evaluate_baseline("gradual-topk", folder, "test", bytes_per_item=37)
    assert (result["live_entries"], result["bytes_per_item"]) == (4 * 130, 32)
    assert result["chosen"]["dims"] == 130 and result["validation"][f"{result['chosen']['rate']:g}"] == max(
        result["validation"].values()
    )
    dense, _ = evaluate_baseline("dense", folder, "valid", bytes_per_item=39)
    assert (dense["live_entries"], dense["bytes_per_item"]) == (9 * 130, 36)
    assert dense["ndcg@100"] == max(dense["validation"].values())
    again, _ = evaluate_baseline("dense", folder, "valid", bytes_per_item=39)
    other, _ = evaluate_baseline("dense", folder, "valid", bytes_per_item=39, seed=1)
    assert again["validation"] == dense["validation"] != other["validation"]


def test_training_stops_when_validation_no_longer_rises(folder, monkeypatch) -> None:
    measured: list[float] = []
    monkeypatch.setattr(elsa, "measure", lambda *rest: measured.append(0.0) or fitting.measure(*rest))
    monkeypatch.setattr(elsa, "EPOCHS", 200)
    trained = train(folder.matrix("train"), Plan(16, 16, 0.5), Request(folder, "valid"))
    assert len(measured) == trained.epoch // 2 + 2 < 100


def test_scores_are_the_product_of_rows(folder) -> None:
    rows = np.random.default_rng(0).normal(size=(130, 6)).astype(np.float32)
    inputs = folder.matrix("test")
    expected = inputs.toarray() @ rows @ rows.T
    for given in (rows, sp.csr_matrix(rows)):
        np.testing.assert_allclose(scorer(given)(inputs), expected, atol=1e-4)


def test_what_cannot_be_trained_is_refused(folder, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="too small for dense: one entry takes 4"):
        evaluate_baseline("dense", folder, "test", bytes_per_item=3)
    with pytest.raises(DataError, match="'valid' has no users"):
        evaluate_baseline("dense", Folder(sizes={"train": 5, "valid": 0, "test": 5}), "test", bytes_per_item=64)
    monkeypatch.setattr(fitting, "available_memory", lambda: 2**10)
    with pytest.raises(ResourceError, match="A table of 130 items × 130 dimensions needs"):
        evaluate_baseline("gradual-topk", folder, "test", bytes_per_item=64)
