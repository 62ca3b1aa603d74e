"""Columns of rows in the same histories, against loops over users and items."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hse_dist.config import GrowSettings
from hse_dist.data.batch import Batch
from hse_dist.sparsity.co_occurrence import shared_columns
from hse_dist.sparsity.collect import GrowthCollector
from hse_dist.tables.block import SparseRows

CANDIDATES, DIMS, EXPLORE = 12, 30, 4


def make_rows(rng: np.random.Generator) -> SparseRows:
    lengths = rng.integers(1, 6, CANDIDATES)
    return SparseRows(
        offsets=torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
        columns=torch.from_numpy(np.concatenate([rng.permutation(DIMS)[:n] for n in lengths])),
        values=torch.from_numpy(rng.integers(-4, 5, lengths.sum()).astype(np.float32)).requires_grad_(),
        gains=None,
        dims=DIMS,
    )


def make_batch(rng: np.random.Generator, users: int) -> Batch:
    histories = [rng.permutation(CANDIDATES - 2)[: rng.integers(0, 5)] for _ in range(users)]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in histories])])
    positions = np.concatenate([np.empty(0, np.int64), *histories])
    return Batch(torch.arange(CANDIDATES) * 3, torch.from_numpy(offsets), torch.from_numpy(positions))


def slow(rows: SparseRows, batch: Batch) -> list[tuple[int, int, float]]:
    dense, bounds = np.zeros((CANDIDATES, DIMS)), rows.offsets.tolist()
    for c in range(CANDIDATES):
        here = slice(bounds[c], bounds[c + 1])
        dense[c, rows.columns[here]] = rows.values.detach()[here].abs()
    sums, live = np.zeros((CANDIDATES, DIMS)), np.zeros((CANDIDATES, DIMS), bool)
    for first, last in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        history = batch.positions[first:last].tolist()
        for c in history:
            sums[c] += sum((dense[other] for other in history if other != c), np.zeros(DIMS))
    live[np.repeat(np.arange(CANDIDATES), np.diff(bounds)), rows.columns] = True
    found = []
    for c in range(CANDIDATES):
        best = sorted((-sums[c, d], d) for d in range(DIMS) if sums[c, d] and not live[c, d])[:EXPLORE]
        found += [(c, d, sums[c, d]) for d in sorted(d for _, d in best)]
    return found


@pytest.mark.parametrize("memory", [1, 2000, 10**8])
@pytest.mark.parametrize("users", [0, 1, 9])
def test_sums_are_those_of_a_loop(users: int, memory: int) -> None:
    rng = np.random.default_rng(users)
    rows, batch = make_rows(rng), make_batch(rng, users)
    found = shared_columns(rows, batch.offsets, batch.positions, EXPLORE, memory)
    assert list(zip(*(part.tolist() for part in found), strict=True)) == slow(rows, batch)
    assert users < 9 or len(found[0]) > 15


def test_the_collector_takes_a_sample_of_users_and_counts_histories() -> None:
    rng = np.random.default_rng(5)
    rows, batch = make_rows(rng), make_batch(rng, 9)
    collector = GrowthCollector(GrowSettings(kind="co_occurrence", collect_users=6, explore=EXPLORE))
    collector.collect_shared(rows, batch)
    state, end = collector.state_dict(), int(batch.offsets[6])
    first = Batch(batch.candidates, batch.offsets[:7], batch.positions[:end])
    expected = slow(rows, first)
    assert state["rows"].tolist() == [3 * c for c, _, _ in expected]
    assert state["columns"].tolist() == [d for _, d, _ in expected]
    assert state["visited"].tolist() == [3 * c for c in batch.positions[:end].tolist()]
