"""Tables on real gloo ranks: lookup, ownership, rows that straddle shards, and one step against a slow reference."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hse_dist.config import ModelSettings, TrainSettings
from hse_dist.data.batch import Batch
from hse_dist.errors import PlanError
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.ranks import Ranks
from hse_dist.tables import plan
from hse_dist.tables.block import SparseRows
from hse_dist.tables.route import IDS_A_BAG, bags
from hse_dist.tables.sharded import DenseTable, PackedTable
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.tables import Content, read_all

ROWS, DIMS, WIDTH = 23, 40, 8
RATE, GAIN_RATE, WARM = 0.1, 0.05, 0.3
# one row is longer than a shard of four ranks
CONTENT = Content.random(0, ROWS, DIMS, WIDTH, longest=19, long_rows={5: 40, 11: 40})
PLACES = [(1, "row_wise"), (1, "table_wise"), (2, "row_wise"), (2, "table_wise"), (4, "row_wise"), (4, "table_wise")]


def make_table(ranks: Ranks, sharding: str) -> PackedTable:
    settings = TrainSettings(learning_rate=RATE, gain_learning_rate=GAIN_RATE, warm_accumulator=WARM)
    return CONTENT.table(ranks, sharding, settings, with_gains=True)


def look_up_and_own(ranks: Ranks, sharding: str):
    table = make_table(ranks, sharding)
    rows, owned = read_all(table), table.owned()
    picked = table.lookup(torch.tensor([5, 0, 22, 5 + ranks.rank]))
    return (
        [tensor.numpy() for tensor in (rows.offsets, rows.columns, rows.values, rows.gains)],
        picked.columns.numpy(),
        (owned.first, owned.last, owned.columns, owned.values),
        table.live_entries(),
        table.ranges,
        table.gains(owned.first, owned.last),
    )


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "sharding"), PLACES)
def test_every_rank_reads_all_rows_and_owns_its_own(ranks, sharding):
    lengths, columns, values, gains = CONTENT.lengths, CONTENT.columns, CONTENT.values, CONTENT.gains
    answers = run_ranks(look_up_and_own, ranks, sharding)
    for (offsets, got_columns, got_values, got_gains), picked, _, live, _, _ in answers:
        assert np.array_equal(np.diff(offsets), lengths) and live == lengths.sum()
        assert np.array_equal(got_columns, np.concatenate(columns))
        assert np.array_equal(got_values, np.concatenate(values))
        np.testing.assert_allclose(got_gains, gains, rtol=1e-6)
        assert np.array_equal(picked[:40], columns[5])
    owned = [answer[2] for answer in answers]
    assert sorted(row for first, last, *_ in owned for row in range(first, last)) == list(range(ROWS))
    for (first, last, slot_columns, slot_values), own_gains in zip(owned, (a[5] for a in answers), strict=True):
        assert np.array_equal(
            slot_columns[slot_columns < DIMS], np.concatenate([*columns[first:last], np.empty(0, int)])
        )
        assert np.array_equal(slot_values[slot_columns < DIMS], np.concatenate([*values[first:last], np.empty(0)]))
        np.testing.assert_allclose(own_gains, gains[first:last], rtol=1e-6)
    if (ranks, sharding) == (4, "row_wise"):
        offsets = CONTENT.layout.offsets.numpy()
        assert any(first not in offsets for first, _ in answers[0][4]), "no row straddles a shard boundary"


def refuse_empty_shards(ranks: Ranks, gains_only: bool) -> int:
    """In 9 rows of 4 ranks the chunks suffice and the gains do not, else one row has one chunk."""
    table, count = ("item_gains", 9) if gains_only else ("item_(values|columns)", 1)
    content = Content.random(1, count, DIMS, WIDTH, longest=5, long_rows={1: 40, 2: 40} if gains_only else {})
    words = rf"The {count} rows of {table} leave a rank of {ranks.size} without.*tables\.item\.sharding = 'row_wise'"
    with pytest.raises(PlanError, match=words):
        content.table(ranks, "row_wise", TrainSettings(), with_gains=gains_only)
    with pytest.raises(PlanError, match="The 1 rows of"):
        DenseTable(1, 8, ranks, TrainSettings(), "row_wise")
    rows = read_all(content.table(ranks, "table_wise", TrainSettings(), with_gains=True))
    assert np.array_equal(rows.values.numpy(), np.concatenate(content.values)), "the way out is none"
    return ranks.rank


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "gains_only"), [(2, False), (4, True)])
def test_a_rank_without_rows_is_refused_on_every_rank(ranks, gains_only):
    assert run_ranks(refuse_empty_shards, ranks, gains_only) == list(range(ranks))


def test_the_planner_knows_the_machine(monkeypatch):
    monkeypatch.setattr(plan, "available_memory", lambda: 4096)
    ranks = SimpleNamespace(size=8, device=torch.device("cpu"))
    for local, memory in (("2", 2048), (None, 512)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local) if local else monkeypatch.delenv("LOCAL_WORLD_SIZE")
        topology = plan.make_topology(ranks)
        assert topology.local_world_size == int(local or 8) and len(topology.devices) == 8
        assert {device.storage.ddr for device in topology.devices} == {memory}


def test_a_table_larger_than_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(plan, "available_memory", lambda: 4096)
    with pytest.raises(PlanError, match="no placement for item_values"):
        run_ranks(make_table, 1, "row_wise")


def rank_batch(rank: int) -> Batch:
    """This rank's own candidates and histories; of rank 3 an empty one."""
    rng = np.random.default_rng(rank)
    candidates = np.sort(rng.permutation(ROWS)[:12])
    lengths = rng.integers(1, 7, 5) if rank != 3 else np.zeros(5, int)
    positions = [rng.permutation(12)[:n] for n in lengths]
    return Batch(
        torch.from_numpy(candidates),
        torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])),
        torch.from_numpy(np.concatenate(positions).astype(np.int64)),
    )


def one_step(ranks: Ranks, sharding: str, norm: str, bag: int | None = None):
    table, batch = make_table(ranks, sharding), rank_batch(ranks.rank)
    with pytest.MonkeyPatch.context() as patch:
        if bag is not None:
            patch.setitem(IDS_A_BAG, "cpu", bag)
        return step_in(table, batch, norm)


def step_in(table: PackedTable, batch: Batch, norm: str):
    rows = table.lookup(batch.candidates)
    if norm == "unit":
        rows = SparseRows(rows.offsets, rows.columns, rows.values, None, rows.dims)
    loss, _ = Autoencoder(ModelSettings(row_norm=norm)).loss(rows, batch, None)
    loss.backward()
    after = read_all(table)
    return after.values.numpy(), after.columns.numpy(), after.gains.numpy()


def reference_step(ranks: int, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """All rank batches with their own candidates, gradients averaged, one row-wise Adagrad update; float64, dense."""
    columns, values, gains = CONTENT.columns, CONTENT.values, CONTENT.gains
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
    gain = torch.tensor(gains, dtype=torch.float64, requires_grad=True)
    dense = torch.stack(
        [
            torch.zeros(DIMS, dtype=torch.float64).index_put((torch.tensor(c),), v)
            for c, v in zip(columns, leaves, strict=True)
        ]
    )
    if norm == "unit":
        dense = dense / dense.norm(dim=1, keepdim=True)
    total = torch.zeros((), dtype=torch.float64)
    for rank in range(ranks):
        batch = rank_batch(rank)
        a = dense[batch.candidates]
        g = gain[batch.candidates] if norm == "free" else torch.ones(12, dtype=torch.float64)
        losses = []
        for b in range(5):
            history = batch.positions[batch.offsets[b] : batch.offsets[b + 1]]
            if len(history):
                x = torch.zeros(12, dtype=torch.float64).index_fill(0, history, 1.0)
                score = g * (a @ a[history].sum(0)) - x * g * a.square().sum(1)
                losses.append(2 - 2 * torch.nn.functional.cosine_similarity(score, x, dim=0))
        total = total + (torch.stack(losses).mean() if losses else 0.0)
    grads = torch.autograd.grad(total / ranks, [*leaves, gain], allow_unused=True)
    updated = []
    for value, grad in zip(values, grads[:-1], strict=True):
        grad = np.zeros(len(value)) if grad is None else grad.numpy()
        chunks = np.arange(len(value)) // WIDTH
        accumulated = WARM + np.bincount(chunks, grad**2) / WIDTH
        updated.append(value - RATE * grad / (np.sqrt(accumulated[chunks]) + 1e-8))
    grad = np.zeros(ROWS) if grads[-1] is None else grads[-1].numpy() * np.sign(gains)
    magnitude = np.abs(gains) - GAIN_RATE * grad / (np.sqrt(WARM + grad**2 / 4) + 1e-8)
    return np.concatenate(updated), np.sign(gains) * np.maximum(magnitude, 1e-3)


@pytest.mark.distributed
@pytest.mark.parametrize("norm", ["unit", "free"])
@pytest.mark.parametrize(("ranks", "sharding"), PLACES)
def test_one_step_equals_the_slow_reference(ranks, sharding, norm):
    values, gains = reference_step(ranks, norm)
    before = np.concatenate(CONTENT.values)
    for got_values, got_columns, got_gains in run_ranks(one_step, ranks, sharding, norm):
        np.testing.assert_allclose(got_values, values, atol=1e-5)
        np.testing.assert_allclose(got_gains, gains, atol=1e-5)
        assert np.array_equal(got_columns, np.concatenate(CONTENT.columns))
        assert np.abs(got_values - before).max() > 1e-3


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "sharding"), PLACES)
def test_ids_in_many_bags_are_looked_up_and_learn_as_in_one(ranks, sharding):
    values, gains = reference_step(ranks, "free")
    for got_values, got_columns, got_gains in run_ranks(one_step, ranks, sharding, "free", 5):
        np.testing.assert_allclose(got_values, values, atol=1e-5)
        np.testing.assert_allclose(got_gains, gains, atol=1e-5)
        assert np.array_equal(got_columns, np.concatenate(CONTENT.columns))


def test_bags_hold_all_ids():
    for count, most, expected in ((0, 4, [0]), (3, 4, [3]), (4, 4, [4]), (9, 4, [4, 4, 1]), (7, 2**31, [7])):
        assert bags(count, most).tolist() == expected
