"""Growth scores against autograd: the loss gradient at every position of a dense table, live or not, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hse_dist.config import GrowSettings, ModelSettings
from hse_dist.data.batch import Batch
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.model.block import Activations
from hse_dist.model.fused import Kept
from hse_dist.native.library import library
from hse_dist.sparsity import collect as collecting
from hse_dist.sparsity.collect import GrowthCollector, strongest_positions
from hse_dist.tables.block import SparseRows

CANDIDATES, EXPLORE = 9, 3


def make_rows(rng: np.random.Generator, dims: int, *, gains: bool, candidates: int = CANDIDATES) -> SparseRows:
    lengths = rng.integers(1, 5, candidates)
    columns = [rng.permutation(dims)[:n] for n in lengths]
    return SparseRows(
        offsets=torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
        columns=torch.from_numpy(np.concatenate(columns)),
        values=torch.from_numpy(rng.normal(size=lengths.sum())).requires_grad_(),
        gains=torch.from_numpy(rng.normal(size=candidates)).requires_grad_() if gains else None,
        dims=dims,
    )


def in_float32(rows: SparseRows) -> SparseRows:
    """The same rows as the compiled path takes them."""
    values, gains = (None if x is None else x.detach().float().requires_grad_() for x in (rows.values, rows.gains))
    return SparseRows(rows.offsets, rows.columns, values, gains, rows.dims)


def make_batch(rng: np.random.Generator, users: int, candidates: int = CANDIDATES, most: int = CANDIDATES) -> Batch:
    lengths = rng.integers(0, most + 1, users)
    positions = [np.empty(0, np.int64), *(rng.permutation(candidates)[:n] for n in lengths)]
    return Batch(
        torch.arange(candidates) * 10,
        torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
        torch.from_numpy(np.concatenate(positions)),
    )


def dense_gradient(
    rows: SparseRows, batch: Batch, seen: Activations, *, unit: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """∂loss/∂table at every position [C, D], from matrices of all candidates and of the users that were collected, as
    if these were the batch; which positions are live."""
    users, candidates = seen.users, len(batch.candidates)
    offsets = batch.offsets[: users + 1]
    row = torch.repeat_interleave(torch.arange(candidates), rows.offsets.diff())
    table = torch.zeros(candidates, rows.dims, dtype=torch.float64)
    live = torch.zeros(candidates, rows.dims, dtype=torch.bool)
    table[row, rows.columns], live[row, rows.columns] = rows.values.detach(), True
    if unit:
        table /= table.norm(dim=1, keepdim=True)  # gradients are of the row at length 1
    table.requires_grad_()
    a = table / table.norm(dim=1, keepdim=True) if unit else table
    gains = torch.ones(candidates, dtype=torch.float64) if rows.gains is None else rows.gains.detach()
    x, shown = torch.zeros(2, users, candidates, dtype=torch.float64)
    x[torch.repeat_interleave(torch.arange(users), offsets.diff()), batch.positions[: offsets[-1]]] = 1
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
@given(
    seed=st.integers(0, 10_000),
    users=st.sampled_from([3, 40, 150]),
    collect=st.sampled_from([1, 30, 130, 1000]),
    memory=st.sampled_from([1, 5_000, 10**8]),
)
@settings(max_examples=8, deadline=None)
def test_strongest_positions_equal_a_dense_autograd(norm, compact_above, dims, dropout, seed, users, collect, memory):
    rng = np.random.default_rng(seed)
    rows, batch = make_rows(rng, dims, gains=norm == "free"), make_batch(rng, users)
    model = Autoencoder(ModelSettings(row_norm=norm, compact_above=compact_above, input_dropout=dropout))
    loss, activations = model.loss(rows, batch, torch.Generator().manual_seed(seed), collect=collect)
    loss.backward()
    candidate, column, gradient = strongest_positions(activations, EXPLORE, memory)
    expected, live = dense_gradient(rows, batch, activations, unit=norm == "unit")
    # a user whose scores are nearly zero has a large slope, and its terms cancel: 1.3e-7 was seen
    bound = {"atol": 1e-12 * max(1.0, float(expected.abs().max())), "rtol": 1e-6}
    torch.testing.assert_close(gradient, expected[candidate, column], **bound)
    assert not live[candidate, column].any()
    size = torch.where(live, 0.0, expected).abs()
    for row in range(CANDIDATES):
        best = size[row].topk(EXPLORE).values
        got = gradient[candidate == row].abs().sort(descending=True).values
        assert len(torch.unique(column[candidate == row])) == len(got) <= EXPLORE
        torch.testing.assert_close(got, best[: len(got)], **bound)
        assert (best[len(got) :] <= bound["atol"]).all(), "a position with a gradient was left out"


@pytest.mark.skipif(library() is None, reason="the kernels were not built")
@pytest.mark.parametrize("norm", ["unit", "free"])
@pytest.mark.parametrize("compact_above", [1, 10_000])
@pytest.mark.parametrize("dims", [12, 700])
@given(
    seed=st.integers(0, 10_000),
    candidates=st.sampled_from([1, 63, 64, 200]),
    collect=st.sampled_from([1, 16, 1000]),
    explore=st.sampled_from([1, 5, 60]),
    threads=st.sampled_from([1, 3]),
)
@settings(max_examples=12, deadline=None)
def test_the_compiled_search_equals_the_plain_one(
    norm, compact_above, dims, seed, candidates, collect, explore, threads
):
    rng = np.random.default_rng(seed)
    rows = in_float32(make_rows(rng, dims, gains=norm == "free", candidates=candidates))
    batch = make_batch(rng, 40, candidates, min(candidates, 12))
    model, found = Autoencoder(ModelSettings(row_norm=norm, compact_above=compact_above)), []
    loss, activations = model.loss(rows, batch, None, collect=collect)
    loss.backward()
    kept = activations.matrices()
    exactly = Kept(kept.users.double(), kept.grad_users.double(), kept.grad_scores.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for same in (replace(activations, kept=exactly), activations):
            candidate, column, gradient = strongest_positions(same, explore, 2**20)
            matrix = torch.zeros(candidates, dims, dtype=torch.float64)
            matrix[candidate, column] = gradient.double()
            assert len(torch.unique(candidate * dims + column)) == len(column), "a position came twice"
            found.append(matrix)
    finally:
        torch.set_num_threads(before)
    exact, compiled = found
    bound = 1e-5 * float(exact.abs().max()) + 1e-6
    assert ((compiled != 0).sum(1) <= explore).all()
    # a position near the weakest that is kept may be in one and not in the other
    sizes = [matrix.abs().sort(dim=1, descending=True).values for matrix in found]
    torch.testing.assert_close(sizes[1], sizes[0], atol=bound, rtol=1e-4)
    both = (exact != 0) & (compiled != 0)
    torch.testing.assert_close(compiled[both], exact[both], atol=bound, rtol=1e-4)
    only = torch.where(both, 0.0, exact.abs()).amax(1)
    assert (only <= sizes[0][:, min(explore, dims) - 1] + bound).all()


def of_blocks(rng: np.random.Generator, dims: int, block: int, candidates: int) -> SparseRows:
    """Rows of one to three whole blocks of columns."""
    numbers = [rng.permutation(dims // block)[:n] for n in rng.integers(1, 4, candidates)]
    columns = [(own[:, None] * block + np.arange(block)).ravel() for own in numbers]
    values = rng.normal(size=sum(map(len, columns)))
    return SparseRows(
        offsets=torch.from_numpy(np.cumsum([0, *map(len, columns)])),
        columns=torch.from_numpy(np.concatenate(columns)),
        values=torch.from_numpy(values).requires_grad_(),
        gains=torch.from_numpy(rng.normal(size=candidates)).requires_grad_(),
        dims=dims,
    )


@pytest.mark.skipif(library() is None, reason="the kernels were not built")
@pytest.mark.parametrize("block", [4, 8, 16])
@pytest.mark.parametrize("compact_above", [1, 10_000])
@given(
    seed=st.integers(0, 10_000),
    candidates=st.sampled_from([1, 63, 200]),
    dims=st.sampled_from([48, 720]),
    explore=st.sampled_from([1, 16, 60]),
)
@settings(max_examples=12, deadline=None)
def test_the_compiled_search_for_blocks_equals_the_plain_one(block, compact_above, seed, candidates, dims, explore):
    rng = np.random.default_rng(seed)
    rows = in_float32(of_blocks(rng, dims, block, candidates))
    batch = make_batch(rng, 40, candidates, min(candidates, 12))
    loss, activations = Autoencoder(ModelSettings(compact_above=compact_above)).loss(rows, batch, None, collect=30)
    loss.backward()
    kept, strengths, found = activations.matrices(), [], []
    exactly = Kept(kept.users.double(), kept.grad_users.double(), kept.grad_scores.double())
    wanted = min(-(-explore // block), dims // block)
    for same in (replace(activations, kept=exactly), activations):
        candidate, column, gradient = strongest_positions(same, explore, 2**20, block)
        matrix = torch.zeros(candidates, dims // block, block, dtype=torch.float64)
        matrix[candidate, column // block, column % block] = gradient.double()
        strength = matrix.square().sum(2)
        assert ((strength != 0).sum(1) <= wanted).all()
        strengths.append(strength.sort(dim=1, descending=True).values[:, :wanted])
        found.append(matrix)
    bound = 1e-5 * float(strengths[0].max()) + 1e-9
    torch.testing.assert_close(strengths[1], strengths[0], atol=bound, rtol=1e-4)
    both = ((found[0] != 0).any(2) & (found[1] != 0).any(2))[:, :, None].expand_as(found[0])
    torch.testing.assert_close(
        found[1][both], found[0][both], atol=1e-5 * float(found[0].abs().max()) + 1e-6, rtol=1e-4
    )
    live = torch.zeros(candidates, dims, dtype=torch.bool)
    live[torch.repeat_interleave(torch.arange(candidates), rows.offsets.diff()), rows.columns] = True
    assert not live[found[1].reshape(candidates, dims) != 0].any()


@pytest.mark.skipif(library() is None, reason="the kernels were not built")
def test_a_gradient_that_is_no_number_is_not_lost():
    rng = np.random.default_rng(1)
    rows, batch = in_float32(make_rows(rng, 300, gains=False)), make_batch(rng, 20)
    loss, activations = Autoencoder(ModelSettings()).loss(rows, batch, None, collect=20)
    loss.backward()
    activations.matrices().grad_scores[4, 3] = float("nan")
    candidate, _, gradient = strongest_positions(activations, 2, 2**20)
    assert gradient[candidate == 4].isnan().any()
    assert gradient[candidate != 4].isfinite().all()


def test_as_many_users_are_collected_as_are_wanted_and_fit():
    rows = make_rows(np.random.default_rng(0), 300, gains=False)
    assert GrowthCollector(GrowSettings(collect_users=7)).users(rows) == 7
    columns = min(300, len(rows.columns) + 1)
    fits = 2**20 // (8 * (3 * columns + CANDIDATES + 1))
    assert GrowthCollector(GrowSettings(collect_users=10**6, memory_mb=1)).users(rows) == fits


def test_sparse_and_dense_products_agree(monkeypatch):
    rng = np.random.default_rng(3)
    rows, batch = make_rows(rng, 40, gains=True), make_batch(rng, 20)
    found = []
    for below in (0.0, 2.0):  # never sparse, always sparse
        monkeypatch.setattr(collecting, "SPARSE_BELOW", below)
        loss, activations = Autoencoder(ModelSettings()).loss(rows, batch, None, collect=CANDIDATES * 20)
        loss.backward()
        kind = collecting._matrix(activations.matrices().users)
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
    loss, activations = Autoencoder(ModelSettings(compact_above=compact_above)).loss(
        rows, batch, None, collect=CANDIDATES * 20
    )
    loss.backward()
    collector = GrowthCollector(GrowSettings())
    collector.collect(activations, batch.candidates)
    state = collector.state_dict()
    assert len(state["rows"]) == len(state["columns"]) == len(state["gradients"]) == 0
    assert state["visited"].tolist() == list(range(candidates))


def test_the_collector_names_rows_and_its_state_is_what_it_saw():
    rng = np.random.default_rng(5)
    rows, batch = make_rows(rng, 30, gains=False), make_batch(rng, 20)
    collector, other = (GrowthCollector(GrowSettings(explore=EXPLORE)) for _ in range(2))
    for _ in range(2):
        loss, activations = Autoencoder(ModelSettings(row_norm="unit")).loss(rows, batch, None, collect=CANDIDATES * 20)
        loss.backward()
        collector.collect(activations, batch.candidates)
    state = collector.state_dict()
    assert set(state["rows"]) <= set(batch.candidates.tolist()) and len(state["rows"]) == 2 * CANDIDATES * EXPLORE
    assert np.array_equal(state["visited"], np.tile(batch.candidates.numpy(), 2))
    other.load_state_dict(state)
    assert all(np.array_equal(part, other.state_dict()[name]) for name, part in state.items())
