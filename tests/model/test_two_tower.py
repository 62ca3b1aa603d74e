"""The model with features against a dense reference in float64: losses, gradients, growth scores."""

from __future__ import annotations

import pytest
import torch

from hse_dist.model.kernels import expand_rows
from hse_dist.sparsity.collect import strongest_positions
from hse_dist.tables.block import SparseRows
from tests.model.features import DIMS, make_case

CASES = [(norm, loss) for norm in ("unit", "free") for loss in ("cosine", "softmax")]
PARTS = [(True, True), (True, False), (False, True)]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("norm", "loss"), CASES)
def test_losses_and_gradients_equal_a_dense_reference(norm: str, loss: str, parts: tuple[bool, bool]) -> None:
    case = make_case(3, norm, loss, sides=parts[0], context=parts[1])
    leaves = [case.rows.values, *case.model.parameters.trained]
    if case.rows.gains is not None:
        leaves.append(case.rows.gains)
    found, _ = case.model.loss(case.rows, case.batch, None)
    wanted = case.reference(case.dense())
    torch.testing.assert_close(found, wanted)
    got = torch.autograd.grad(found, leaves, allow_unused=True)
    want = torch.autograd.grad(wanted, leaves, allow_unused=True)
    for one, other in zip(got, want, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(zero if one is None else one, zero if other is None else other, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize(("norm", "loss"), CASES)
def test_growth_scores_are_gradients_of_positions_that_are_not_live(norm: str, loss: str) -> None:
    case = make_case(5, norm, loss)
    found, activations = case.model.loss(case.rows, case.batch, None, collect=100)
    found.backward()
    assert activations.spread is not None
    candidate, column, gradient = activations.spread(*strongest_positions(activations, DIMS, 2**20))
    got = torch.zeros(len(case.batch.candidates), DIMS, dtype=torch.float64)
    got.index_put_((candidate, column), gradient.double(), accumulate=True)
    unit = norm == "unit"
    dense = case.dense().detach()
    dense = (torch.nn.functional.normalize(dense, dim=1) if unit else dense).requires_grad_()
    (want,) = torch.autograd.grad(case.reference(dense), dense)
    entries, _ = expand_rows(case.rows.offsets, torch.arange(len(want)))
    owner = torch.repeat_interleave(torch.arange(len(want)), case.rows.offsets.diff())
    assert case.batch.features is not None
    for row in range(len(want)):
        live = case.rows.columns[entries[owner == row]]
        assert not got[row, live].any()
    # of rows of users' features and of items without any, whose composed rows have no other live entries
    items, features = case.batch.features.items, case.batch.features
    plain = [item for item in range(items) if features.side_offsets[item] == features.side_offsets[item + 1]]
    context = range(items, items + features.context_rows)
    for row in [*plain, *context]:
        free = torch.ones(DIMS, dtype=torch.bool)
        free[case.rows.columns[entries[owner == row]]] = False
        torch.testing.assert_close(got[row, free], want[row, free], atol=1e-6, rtol=1e-5)


def test_bpr_prefers_items_of_the_history() -> None:
    case = make_case(7, "unit", "bpr")
    before = after = 0.0
    optimizer = torch.optim.SGD([case.rows.values, *case.model.parameters.trained], lr=0.5)
    for step in range(60):
        loss, _ = case.model.loss(case.rows, case.batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            scores, seen = case.scores(case.dense())
            margin = float((scores * seen).sum() / seen.sum() - (scores * (1 - seen)).sum() / (1 - seen).sum())
        before, after = (margin, after) if step == 0 else (before, margin)
    assert after > before + 0.2


def test_weights_and_users_without_features_change_nothing_where_they_are_zero() -> None:
    case = make_case(9, "unit", "cosine")
    with torch.no_grad():
        case.model.parameters.weights.zero_()
    loss, _ = case.model.loss(case.rows, case.batch, None)
    assert case.batch.features is not None
    items = case.batch.features.items
    end = int(case.rows.offsets[items])
    parts = (case.rows.offsets[: items + 1], case.rows.columns[:end], case.rows.values[:end])
    rows = SparseRows(*parts, None, DIMS)
    plain, _ = case.model.loss(
        rows, type(case.batch)(case.batch.candidates[:items], case.batch.offsets, case.batch.positions), None
    )
    torch.testing.assert_close(loss, plain)
