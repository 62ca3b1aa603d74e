"""Growth scores against autograd: the loss gradient at every position of a dense table, live or not, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hse_dist.config import ModelSettings, RewireSettings
from hse_dist.data.batch import Batch
from hse_dist.model.autoencoder import Activations, Autoencoder
from hse_dist.sparsity import collect
from hse_dist.sparsity.collect import GrowthCollector, strongest_positions
from hse_dist.tables.block import SparseRows

CANDIDATES, EXPLORE = 9, 3


def make_rows(rng: np.random.Generator, dims: int, *, gains: bool) -> SparseRows:
    lengths = rng.integers(1, 5, CANDIDATES)
    columns = [rng.permutation(dims)[:n] for n in lengths]
    return SparseRows(
        offsets=torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
        columns=torch.from_numpy(np.concatenate(columns)),
        values=torch.from_numpy(rng.normal(size=lengths.sum())).requires_grad_(),
        gains=torch.from_numpy(rng.normal(size=CANDIDATES)).requires_grad_() if gains else None,
        dims=dims,
    )


def make_batch(rng: np.random.Generator, users: int) -> Batch:
    lengths = rng.integers(0, CANDIDATES + 1, users)
    positions = [np.empty(0, np.int64), *(rng.permutation(CANDIDATES)[:n] for n in lengths)]
    return Batch(
        torch.arange(CANDIDATES) * 10,
        torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
        torch.from_numpy(np.concatenate(positions)),
    )


def dense_gradient(
    rows: SparseRows, batch: Batch, seen: Activations, *, unit: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """∂loss/∂table at every position [C, D], from matrices of all candidates and users; which positions are live."""
    users = len(batch.offsets) - 1
    row = torch.repeat_interleave(torch.arange(CANDIDATES), rows.offsets.diff())
    table = torch.zeros(CANDIDATES, rows.dims, dtype=torch.float64)
    live = torch.zeros(CANDIDATES, rows.dims, dtype=torch.bool)
    table[row, rows.columns], live[row, rows.columns] = rows.values.detach(), True
    if unit:
        table /= table.norm(dim=1, keepdim=True)  # gradients are of the row at length 1
    table.requires_grad_()
    a = table / table.norm(dim=1, keepdim=True) if unit else table
    gains = torch.ones(CANDIDATES, dtype=torch.float64) if rows.gains is None else rows.gains.detach()
    x, shown = torch.zeros(users, CANDIDATES, dtype=torch.float64), torch.zeros(users, CANDIDATES, dtype=torch.float64)
    x[torch.repeat_interleave(torch.arange(users), batch.offsets.diff()), batch.positions] = 1
    shown[seen.user, seen.positions] = 1
    scores = (shown @ a @ a.t() - shown * a.square().sum(1)) * gains
    some = x.sum(1) > 0
    moving = scores.norm(dim=1) > 1e-6  # scores that are all zero have no direction, and no gradient
    cosines = torch.nn.functional.cosine_similarity(scores[moving & some], x[moving & some], dim=1)
    loss = (2 - 2 * cosines).sum() / some.sum()
    return torch.autograd.grad(loss, table)[0], live


@pytest.mark.parametrize("norm", ["unit", "free"])
@pytest.mark.parametrize("compact_above", [1, 10_000])
@pytest.mark.parametrize(("dims", "dropout"), [(12, 0.0), (12, 0.3), (300, 0.0)])
@given(seed=st.integers(0, 10_000), users=st.sampled_from([3, 40, 150]), memory=st.sampled_from([1, 5_000, 10**8]))
@settings(max_examples=8, deadline=None)
def test_strongest_positions_equal_a_dense_autograd(norm, compact_above, dims, dropout, seed, users, memory):
    rng = np.random.default_rng(seed)
    rows, batch = make_rows(rng, dims, gains=norm == "free"), make_batch(rng, users)
    model = Autoencoder(ModelSettings(row_norm=norm, compact_above=compact_above, input_dropout=dropout))
    loss, activations = model.loss(rows, batch, torch.Generator().manual_seed(seed), collect=True)
    loss.backward()
    candidate, column, gradient = strongest_positions(activations, EXPLORE, memory)
    expected, live = dense_gradient(rows, batch, activations, unit=norm == "unit")
    bound = {"atol": 1e-12 * max(1.0, float(expected.abs().max())), "rtol": 1e-7}
    torch.testing.assert_close(gradient, expected[candidate, column], **bound)
    assert not live[candidate, column].any()
    size = torch.where(live, 0.0, expected).abs()
    for row in range(CANDIDATES):
        best = size[row].topk(EXPLORE).values
        got = gradient[candidate == row].abs().sort(descending=True).values
        assert len(torch.unique(column[candidate == row])) == len(got) <= EXPLORE
        torch.testing.assert_close(got, best[: len(got)], **bound)
        assert (best[len(got) :] <= bound["atol"]).all(), "a position with a gradient was left out"


def test_sparse_and_dense_products_agree(monkeypatch):
    rng = np.random.default_rng(3)
    rows, batch = make_rows(rng, 40, gains=True), make_batch(rng, 20)
    found = []
    for below in (0.0, 2.0):  # never sparse, always sparse
        monkeypatch.setattr(collect, "SPARSE_BELOW", below)
        loss, activations = Autoencoder(ModelSettings()).loss(rows, batch, None, collect=True)
        loss.backward()
        kind = collect._matrix(activations.matrices()[0])
        assert (kind.layout == torch.sparse_csr) == (below > 1)
        candidate, column, gradient = strongest_positions(activations, EXPLORE, 2_000)
        order = (candidate * 40 + column).argsort()
        found.append((candidate[order], column[order], gradient[order]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("users", [0, 4])
@pytest.mark.parametrize("candidates", [0, CANDIDATES])
@pytest.mark.parametrize("compact_above", [1, 10_000])
def test_a_batch_without_interactions_gives_no_positions_but_visits(users, candidates, compact_above):
    rows = make_rows(np.random.default_rng(0), 12, gains=True)
    if not candidates:
        nothing, none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64, requires_grad=True)
        rows = SparseRows(torch.zeros(1, dtype=torch.int64), nothing, none, none, 12)
    batch = Batch(
        torch.arange(candidates), torch.zeros(users + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    )
    loss, activations = Autoencoder(ModelSettings(compact_above=compact_above)).loss(rows, batch, None, collect=True)
    loss.backward()
    collector = GrowthCollector(RewireSettings())
    collector.collect(activations, batch.candidates)
    state = collector.state_dict()
    assert len(state["rows"]) == len(state["columns"]) == len(state["gradients"]) == 0
    assert state["visited"].tolist() == list(range(candidates))


def test_the_collector_names_rows_and_its_state_is_what_it_saw():
    rng = np.random.default_rng(5)
    rows, batch = make_rows(rng, 30, gains=False), make_batch(rng, 20)
    collector, other = (GrowthCollector(RewireSettings(explore=EXPLORE)) for _ in range(2))
    for _ in range(2):
        loss, activations = Autoencoder(ModelSettings(row_norm="unit")).loss(rows, batch, None, collect=True)
        loss.backward()
        collector.collect(activations, batch.candidates)
    state = collector.state_dict()
    assert set(state["rows"]) <= set(batch.candidates.tolist()) and len(state["rows"]) == 2 * CANDIDATES * EXPLORE
    assert np.array_equal(state["visited"], np.tile(batch.candidates.numpy(), 2))
    other.load_state_dict(state)
    assert all(np.array_equal(part, other.state_dict()[name]) for name, part in state.items())
