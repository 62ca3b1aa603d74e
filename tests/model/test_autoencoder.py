"""The step's arithmetic against a dense float64 computation, and its gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hse_dist.config import ModelSettings
from hse_dist.data.batch import Batch
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.model.kernels import CosineLoss, Pattern, Pool, Score, expand_rows
from hse_dist.model.operators import SparseOperators
from hse_dist.tables.block import DenseRows, SparseRows
from tests.model.rows import make_rows


def make_batch(rng: np.random.Generator, candidates: int, users: int) -> Batch:
    """Histories of different lengths without repeats; one of them empty."""
    lengths = rng.integers(1, candidates + 1, users)
    lengths[0] = 0 if users > 1 else lengths[0]
    positions = [rng.permutation(candidates)[:n] for n in lengths]
    return Batch(
        candidates=torch.arange(candidates),
        offsets=torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
        positions=torch.from_numpy(np.concatenate(positions).astype(np.int64)),
    )


def densify(rows: SparseRows, dims: int) -> torch.Tensor:
    row = torch.repeat_interleave(torch.arange(len(rows.offsets) - 1), rows.offsets.diff())
    dense = torch.zeros(len(rows.offsets) - 1, dims, dtype=rows.values.dtype)
    return dense.index_put((row, rows.columns), rows.values)


def reference_loss(
    rows: SparseRows, batch: Batch, *, unit: bool, clip: float | None, power: float = 1.0
) -> torch.Tensor:
    """The formula of the module docstring with dense matrices and a loop over users."""
    a = densify(rows, rows.dims)
    if unit:
        a = a / a.norm(dim=1, keepdim=True).clamp_min(1e-12)
    gains = torch.ones(len(a), dtype=a.dtype) if rows.gains is None else rows.gains
    losses, weights = [], []
    for b in range(len(batch.offsets) - 1):
        history = batch.positions[batch.offsets[b] : batch.offsets[b + 1]]
        if not len(history):
            continue
        x = torch.zeros(len(a), dtype=a.dtype)
        x[history] = 1
        score = gains * (a @ a[history].sum(0)) - x * gains * a.square().sum(1)
        if clip is not None:
            score = score.clamp(-clip, clip)
        # the cosine has no slope where a user's scores are all zero; there each code has its own bound
        assume(bool(score.detach().norm() > 1e-3))
        losses.append(2 - 2 * torch.nn.functional.cosine_similarity(score, x, dim=0))
        weights.append(len(history) ** (1.0 - power))
    return (torch.stack(losses) * torch.tensor(weights, dtype=a.dtype)).sum() / sum(weights)


@pytest.mark.parametrize("norm", ["unit", "free"])
@pytest.mark.parametrize("compact_above", [1, 1000])
@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("collect", [0, 2, 100])
@pytest.mark.parametrize("user_block", [3, 128])
@given(seed=st.integers(0, 10_000), power=st.sampled_from([0.0, 0.25, 1.0]))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_loss_and_gradients_equal_dense_reference(
    monkeypatch, norm, compact_above, clip, collect, user_block, seed, power
):
    monkeypatch.setattr(SparseOperators, "user_block", user_block)
    rng = np.random.default_rng(seed)
    rows = make_rows(rng, candidates=9, dims=12, gains=norm == "free")
    batch = make_batch(rng, candidates=9, users=4)
    model = Autoencoder(ModelSettings(row_norm=norm, compact_above=compact_above, score_clip=clip, history_power=power))
    loss, _ = model.loss(rows, batch, None, collect=collect)
    expected = reference_loss(rows, batch, unit=norm == "unit", clip=clip, power=power)
    torch.testing.assert_close(loss, expected)
    leaves = [rows.values] if rows.gains is None else [rows.values, rows.gains]
    for got, want in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-7)


def test_gradcheck_of_each_function():
    rng = np.random.default_rng(1)
    rows, batch = make_rows(rng, 6, 7, gains=False), make_batch(rng, 6, 3)
    user = torch.repeat_interleave(torch.arange(3), batch.offsets.diff())
    entries, counts = expand_rows(rows.offsets, batch.positions)
    target = rows.columns[entries] * 3 + torch.repeat_interleave(user, counts)
    u_db = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    own = torch.randn(len(user), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: Pool.apply(v, entries, target, 7, 3), rows.values)
    assert torch.autograd.gradcheck(
        lambda v, u: Score.apply(v, Pattern(rows.offsets, rows.columns, 7), u), (rows.values, u_db)
    )
    shares = torch.tensor([0.0, 0.3, 0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s, o: CosineLoss.apply(s, o, batch.positions, user, shares, None), (scores, own)
    )


@pytest.mark.parametrize("users", [0, 3])
@pytest.mark.parametrize("candidates", [0, 5])
@pytest.mark.parametrize("compact_above", [1, 1000])
def test_batch_without_interactions_has_zero_loss_and_gradient(users, candidates, compact_above):
    rows = (
        make_rows(np.random.default_rng(0), candidates, 8, gains=True)
        if candidates
        else SparseRows(
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, requires_grad=True),
            torch.zeros(0, requires_grad=True),
            8,
        )
    )
    batch = Batch(
        torch.arange(candidates), torch.zeros(users + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    )
    loss, _ = Autoencoder(ModelSettings(compact_above=compact_above)).loss(rows, batch, None)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.all(rows.values.grad == 0)


def test_dropout_hides_from_the_input_and_keeps_the_target():
    rng = np.random.default_rng(3)
    rows, batch = make_rows(rng, 30, 12, gains=True, empty=False), make_batch(rng, 30, 20)
    model = Autoencoder(ModelSettings(input_dropout=0.5))
    loss, activations = model.loss(rows, batch, torch.Generator().manual_seed(1), collect=len(batch.offsets))
    again, _ = model.loss(rows, batch, torch.Generator().manual_seed(1))
    other, _ = model.loss(rows, batch, torch.Generator().manual_seed(2))
    assert loss == again != other
    assert 0.3 < len(activations.positions) / len(batch.positions) < 0.7


def test_dense_rows_equal_packed_rows_of_all_columns():
    rng = np.random.default_rng(5)
    values = torch.from_numpy(rng.normal(size=(7, 4)))
    dense, packed = values.clone().requires_grad_(), values.flatten().clone().requires_grad_()
    rows = SparseRows(torch.arange(0, 29, 4), torch.arange(4).repeat(7), packed, None, 4)
    batch = make_batch(rng, 7, 5)
    model = Autoencoder(ModelSettings(row_norm="unit"))
    a, _ = model.loss(DenseRows(dense), batch, None)
    b, _ = model.loss(rows, batch, None)
    a.backward()
    b.backward()
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(dense.grad.flatten(), packed.grad)
