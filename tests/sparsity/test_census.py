"""The sketch against exact numbers, and ages against a dictionary of births; what a restart takes up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hse_dist.data.popularity import thirds
from hse_dist.ranks import Ranks
from hse_dist.sparsity.census import Census, Groups, Sketch, estimate
from hse_dist.tables.sharded import OwnedRows
from hse_dist.testing.ranks import run_ranks

ROWS, DIMS, SLOTS, VERSIONS = 40, 30, 6, 5


@pytest.mark.parametrize("count", [0, 1, 300, 30_000, 400_000])
def test_the_sketch_counts_different_positions(count: int) -> None:
    positions = np.random.default_rng(count).permutation(10**6)[:count] * 977
    one, parts = Sketch(), [Sketch(), Sketch()]
    one.add(np.concatenate([positions, positions[: count // 2]]))
    parts[0].add(positions[: count // 3])
    parts[1].add(positions[count // 4 :])
    assert np.array_equal(one.registers, np.maximum(parts[0].registers, parts[1].registers))
    assert estimate(one.registers) == pytest.approx(count, rel=0.025, abs=0.5)


def owned_at(version: int) -> OwnedRows:
    """Rows whose live entries follow from the version."""
    rng = np.random.default_rng(version)
    columns = np.concatenate([rng.permutation(DIMS // 2)[:SLOTS] for _ in range(ROWS)]).astype(np.int32)
    columns[rng.random(len(columns)) < 0.2] = DIMS
    return OwnedRows(0, ROWS, np.arange(ROWS + 1) * SLOTS, np.ones(len(columns), np.float32), columns, DIMS)


def positions_of(owned: OwnedRows) -> np.ndarray:
    return (owned.slot_rows() * DIMS + owned.columns)[owned.live]


def take(ranks: Ranks, sample: int, restart: bool) -> list[dict[str, Any]]:
    groups = Groups.of(np.arange(ROWS, 0, -1), None, ROWS)
    census, before = Census(ranks, groups, DIMS, sample), owned_at(0)
    census.begin(before)
    facts = []
    for version in range(1, VERSIONS):
        owned = owned_at(version)
        grown = np.setdiff1d(positions_of(owned), positions_of(before))
        facts.append(census.take(owned, grown, [(0, ROWS)], version))
        before = owned
        if restart:
            state, census = census.state_dict(), Census(ranks, groups, DIMS, sample)
            census.load_state_dict(state)
    return facts


@pytest.mark.parametrize("restart", [False, True])
def test_facts_are_those_of_a_slow_count(restart: bool) -> None:
    (facts,) = run_ranks(take, 1, ROWS, restart)
    third = thirds(np.arange(ROWS, 0, -1))
    births, ever = dict.fromkeys(positions_of(owned_at(0)).tolist(), 0), set(positions_of(owned_at(0)).tolist())
    for version, found in enumerate(facts, start=1):
        live = positions_of(owned_at(version)).tolist()
        births = {position: births.get(position, version) for position in live}
        ever |= set(live)
        assert found["mean_age"] == sum(version - birth for birth in births.values()) / len(live)
        assert found["explored"] * ROWS * DIMS == pytest.approx(len(ever), rel=0.025)
        assert found["dead_columns"] == pytest.approx(1 - len({p % DIMS for p in live}) / DIMS)
        rows = [third[p // DIMS] for p in live]
        expected = {"live": len(live), "head": rows.count(0), "middle": rows.count(1), "tail": rows.count(2)}
        assert found["tables"]["item"] == expected
    assert len(ever) > 1.5 * len(live) and facts[-1]["mean_age"] > 0


def test_a_sample_of_rows_estimates_ages_and_none_says_nothing() -> None:
    (whole,), (part,), (none,) = (run_ranks(take, 1, sample, False) for sample in (ROWS, 15, 0))
    assert part[-1]["mean_age"] == pytest.approx(whole[-1]["mean_age"], rel=0.3)
    assert part[-1]["mean_age"] != whole[-1]["mean_age"]
    assert [found["mean_age"] for found in none] == [None] * len(none)
