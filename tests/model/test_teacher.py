"""A loss by another model's scores, against dense float64 arithmetic."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from hse_dist.config import ModelSettings
from hse_dist.data.batch import Batch
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.model.teacher import TeacherLoss
from hse_dist.tables.block import DenseRows, SparseRows
from tests.model.rows import make_rows

DROPOUT = 0.4
full_rows = partial(make_rows, empty=False)


def make_batch(rng: np.random.Generator, candidates: int, users: int) -> Batch:
    """Histories of different lengths; the first one is empty."""
    lengths = np.append(0, rng.integers(1, candidates // 2, users - 1))
    positions = np.concatenate([rng.permutation(candidates)[:n] for n in lengths]).astype(np.int64)
    offsets = np.append(0, lengths.cumsum())
    return Batch(torch.arange(candidates), torch.from_numpy(offsets), torch.from_numpy(positions))


def scores_of(rows: SparseRows, history: Tensor, *, unit: bool, strongest: int | None = None) -> Tensor:
    owner = torch.repeat_interleave(torch.arange(len(rows.offsets) - 1), rows.offsets.diff())
    a = torch.zeros(len(rows.offsets) - 1, rows.dims, dtype=torch.float64).index_put((owner, rows.columns), rows.values)
    if unit:
        a = a / a.norm(dim=1, keepdim=True)
    user = a[history].sum(0)
    if strongest is not None and strongest < len(user):
        user = user * (user.abs() >= user.abs().topk(strongest).values[-1])
    gains = torch.ones(len(a), dtype=torch.float64) if rows.gains is None else rows.gains
    return gains * (a @ user)


@pytest.mark.parametrize("norms", [("free", "free"), ("unit", "free"), ("free", "unit")])
@pytest.mark.parametrize("users", [5, 150])  # more than one block of users
def test_loss_and_gradients_equal_a_dense_reference(norms: tuple[str, str], users: int) -> None:
    rng = np.random.default_rng(users)
    mine, other = (full_rows(rng, 30, dims, gains=norm == "free") for dims, norm in zip((12, 40), norms, strict=True))
    batch, generator = make_batch(rng, 30, users), torch.Generator().manual_seed(3)
    learns = Autoencoder(ModelSettings(row_norm=norms[0], input_dropout=DROPOUT))
    teaches = Autoencoder(ModelSettings(row_norm=norms[1], user_entries=9))
    teacher = teaches.teacher(other, batch.positions)
    loss, _ = learns.loss(mine, batch, generator, teacher=teacher)
    trained = [mine.values, *([mine.gains] if mine.gains is not None else [])]
    found = torch.autograd.grad(loss, trained)

    shown = torch.rand(len(batch.positions), generator=torch.Generator().manual_seed(3)) >= DROPOUT
    wanted, judged = torch.zeros((), dtype=torch.float64), int((batch.offsets.diff() > 0).sum())
    for user in range(users):
        first, last = int(batch.offsets[user]), int(batch.offsets[user + 1])
        if first == last:
            continue
        history = batch.positions[first:last][shown[first:last]]
        score = scores_of(mine, history, unit=norms[0] == "unit")
        target = scores_of(other, history, unit=norms[1] == "unit", strongest=9).detach().clamp_min(0)
        target[history] = 0
        rest = torch.ones(30, dtype=torch.bool)
        rest[history] = False
        # without a direction on one side: nothing to learn, but the user counts
        still = target.norm() < 1e-6 or score[rest].detach().norm() < 1e-6
        cosine = torch.zeros(()) if still else torch.cosine_similarity(score[rest], target[rest], dim=0)
        wanted = wanted + (2 - 2 * cosine) / judged
    torch.testing.assert_close(loss, wanted)
    for one, reference in zip(found, torch.autograd.grad(wanted, trained), strict=True):
        torch.testing.assert_close(one, reference)


def test_dense_rows_learn_as_sparse_ones_of_the_same_entries() -> None:
    rng = np.random.default_rng(2)
    other, batch = (
        full_rows(rng, 30, 40, gains=True),
        make_batch(rng, 30, 150),
    )  # more than a block of the teacher's
    teacher = Autoencoder(ModelSettings(row_norm="free")).teacher(other, batch.positions)
    dense = torch.from_numpy(rng.normal(size=(30, 12))).requires_grad_()
    offsets, columns = torch.arange(0, 361, 12), torch.arange(12).repeat(30)
    learns, found = Autoencoder(ModelSettings(row_norm="unit")), []
    for rows in (DenseRows(dense), SparseRows(offsets, columns, dense.reshape(-1), None, 12)):
        loss, _ = learns.loss(rows, batch, None, teacher=teacher)
        found.append((loss, *torch.autograd.grad(3 * loss, [dense])))
    for one, reference in zip(*found, strict=True):
        torch.testing.assert_close(one, reference)


def test_a_teacher_has_no_gradient_and_a_model_like_its_teacher_has_nothing_to_learn() -> None:
    rng = np.random.default_rng(0)
    rows, batch = full_rows(rng, 30, 12, gains=True), make_batch(rng, 30, 40)
    rows = replace(rows, values=rows.values.abs().detach(), gains=rows.gains.abs().detach())
    mine = replace(rows, values=rows.values.clone().requires_grad_(), gains=3 * rows.gains)
    model = Autoencoder(ModelSettings(row_norm="free"))
    loss, _ = model.loss(mine, batch, None, teacher=model.teacher(rows, batch.positions))
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, [mine.values])
    assert gradient.abs().max() < 1e-12 and rows.values.grad is None


@pytest.mark.parametrize("norm", ["free", "unit"])
def test_growth_scores_are_gradients_of_positions_that_are_not_live(norm: str) -> None:
    rng = np.random.default_rng(1)
    mine, other = (
        full_rows(rng, 30, 12, gains=norm == "free"),
        full_rows(rng, 30, 40, gains=True),
    )
    batch, learns = make_batch(rng, 30, 20), Autoencoder(ModelSettings(row_norm=norm))
    teacher = Autoencoder(ModelSettings(row_norm="free")).teacher(other, batch.positions)
    loss, activations = learns.loss(mine, batch, None, collect=20, teacher=teacher)
    loss.backward()
    kept = activations.matrices()
    # what an entry that is not live would get: from the scores, and from the users who pool its row
    pooled = torch.zeros(20, 30, dtype=torch.float64).index_put(
        (activations.user, activations.positions), torch.ones(len(activations.user), dtype=torch.float64)
    )
    gains = torch.ones(30, dtype=torch.float64) if mine.gains is None else mine.gains.detach()
    found = (gains[:, None] * kept.grad_scores) @ kept.users.t() + pooled.t() @ kept.grad_users.t()
    owner = torch.repeat_interleave(torch.arange(30), mine.offsets.diff())
    dense = torch.zeros(30, 12, dtype=torch.float64).index_put((owner, mine.columns), mine.values.detach())
    if norm == "unit":
        dense = dense / dense.norm(dim=1, keepdim=True)
    dense.requires_grad_()
    offsets, columns = torch.arange(0, 361, 12), torch.arange(12).repeat(30)
    full = SparseRows(offsets, columns, dense.reshape(-1), mine.gains, 12)
    loss, _ = Autoencoder(ModelSettings(row_norm="free")).loss(full, batch, None, teacher=teacher)
    (wanted,) = torch.autograd.grad(loss, [dense])
    live = torch.zeros(30, 12, dtype=torch.bool).index_put((owner, mine.columns), torch.tensor(True))
    torch.testing.assert_close(found[~live], wanted[~live])


def test_users_and_teachers_without_a_direction_count_and_move_nothing() -> None:
    scores = torch.tensor([[1.0, 0.0, 2.0], [2.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1.0, 1.0, -3.0], [2.0, 1.0, -1.0]], dtype=torch.float64)
    shares, none = torch.full((3,), 1 / 3, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    loss = TeacherLoss.apply(scores, target, none, shares)
    assert loss.item() == pytest.approx((0 + 2 + 2) / 3)
    loss.backward()
    assert scores.grad is not None and scores.grad.isfinite().all()
    assert (scores.grad[:, 1:] == 0).all()
