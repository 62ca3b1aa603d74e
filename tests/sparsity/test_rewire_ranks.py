"""Rewires on real gloo ranks, the way a run takes: collector, exchange, server, shards.

Equal tables and an equal multiset of triples must become bit-equal tables on 1, 2 and 4 ranks, whatever the sharding
and however the triples were spread; several rewires follow each other.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from hse_dist.config import Config, TrainSettings, parse_config
from hse_dist.errors import NumericError
from hse_dist.ranks import Ranks
from hse_dist.sparsity.client import GroupTransport
from hse_dist.sparsity.server import SparsityServer
from hse_dist.tables.sharded import OwnedRows
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.tables import Content, join
from hse_dist.train.step import Trainer

ROWS, DIMS, WIDTH, STEPS = 37, 400, 8, 10
# one row lies on three shards of four ranks, one is at its ceiling
LONG_ROWS = {15: 390, 7: 17, 24: 150, 30: 48}
CASES: dict[str, dict[str, Any]] = {
    "global": {"budget": {"floor": 2, "ceiling": 48}, "schedule": {"drop_fraction": 0.4}},
    "ties": {"budget": {"floor": 1, "ceiling": 400}, "schedule": {"drop_fraction": 0.5}},
    "row": {"budget": {"kind": "row", "floor": 1}, "schedule": {"drop_fraction": 0.5}},
    "random": {"schedule": {"drop_fraction": 0.7}, "grow": {"kind": "random", "explore": 5}},
}
PLACES = [(1, "row_wise"), (1, "table_wise"), (2, "row_wise"), (2, "table_wise"), (4, "row_wise"), (4, "table_wise")]


def content(case: str) -> Content:
    return Content.random(1, ROWS, DIMS, WIDTH, longest=20, long_rows=LONG_ROWS, ties=case == "ties")


def make_config(case: str, norm: str) -> Config:
    sparsity = {"start": "random", **CASES[case]}
    sparsity["schedule"] = {"interval": 1, "stop": 1.0, **sparsity["schedule"]}
    sparsity["grow"] = {"window": 1, **sparsity.get("grow", {})}
    sparsity["budget"] = {"ceiling": 400, **sparsity.get("budget", {})}
    item = {"dims": DIMS, "live": 2, "chunk_width": WIDTH}
    raw = {"tables": {"item": item}, "model": {"row_norm": norm}, "sparsity": sparsity, "run": {"seed": 3}}
    return parse_config(raw, "of a test")


def triples(case: str, step: int) -> dict[str, np.ndarray]:
    """Positions with repeats, some of them live; rows 3 and 30 never occur, 11 was visited without a position."""
    rng = np.random.default_rng(step)
    rows = rng.choice(np.setdiff1d(np.arange(ROWS), [3, 11, 30]), 900)
    gradients = rng.choice([-2, -1, 1, 2], 900) if case == "ties" else rng.normal(size=900)
    visited = np.concatenate([np.setdiff1d(np.arange(ROWS), [3, 30]), rng.choice(rows, 60)])
    columns = rng.integers(0, DIMS, 900)
    return {"rows": rows, "columns": columns, "gradients": gradients.astype(np.float32), "visited": visited}


def share(whole: dict[str, np.ndarray], ranks: Ranks, step: int) -> dict[str, np.ndarray]:
    """What this rank saw of it: a part of its own size, in an order that depends on the number of ranks."""
    rng = np.random.default_rng([step, ranks.size])
    owner, seer = (rng.integers(0, ranks.size, len(whole[name])) ** 2 // ranks.size for name in ("rows", "visited"))
    order = rng.permutation(np.flatnonzero(owner == ranks.rank))
    part = {name: whole[name][order] for name in ("rows", "columns", "gradients")}
    return {**part, "visited": rng.permutation(whole["visited"][seer == ranks.rank])}


def make_trainer(ranks: Ranks, sharding: str, case: str, norm: str) -> Trainer:
    config = make_config(case, norm)
    table = content(case).table(ranks, sharding, TrainSettings(), with_gains=norm == "free")
    transport = GroupTransport(ranks, lambda: SparsityServer(config.sparsity, STEPS, ranks.size))
    return Trainer(config, table, transport, ranks, STEPS)


def rewire_thrice(ranks: Ranks, sharding: str) -> dict[str, Any]:
    """For every case: this rank's rows before and after each of three rewires, the journal, and the shards' ranges."""
    answers = {}
    for case, norm in [*((case, "free") for case in CASES), ("global", "unit")]:
        trainer = make_trainer(ranks, sharding, case, norm)
        table, history = trainer.table, []
        for step in (1, 2, 3):
            trainer.collector.load_state_dict(share(triples(case, step), ranks, step))
            before = table.owned()
            trainer.rewire(step)
            history.append((before, table.owned()))
            # training: what has grown gets a value
            trained = table.owned()
            grown = trained.live & (trained.values == 0)
            trained.values[grown] = np.sin(trained.slot_rows()[grown] * 7.0 + trained.columns[grown])
            table.put_back(trained)
        live = table.live_entries()
        answers[f"{case}, {norm}"] = (history, trainer.transport.state_dict(), table.ranges, live, trainer.version)
    return answers


@cache
def run(ranks: int, sharding: str) -> list[dict[str, Any]]:
    return run_ranks(rewire_thrice, ranks, sharding)


def whole(answers: list[dict[str, Any]], case: str, step: int, moment: int) -> OwnedRows:
    return join([answer[case][0][step][moment] for answer in answers])


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "sharding"), PLACES[1:])
@pytest.mark.parametrize("case", [*(f"{case}, free" for case in CASES), "global, unit"])
def test_tables_become_bit_equal_on_any_number_of_ranks(ranks, sharding, case):
    one, many = run(*PLACES[0]), run(ranks, sharding)
    for step in range(3):
        for moment in (0, 1):
            a, b = whole(one, case, step, moment), whole(many, case, step, moment)
            assert (b.first, b.last) == (0, ROWS)
            assert np.array_equal(a.columns, b.columns) and a.values.tobytes() == b.values.tobytes()
    assert all(answer[case][1] == one[0][case][1] for answer in many), "journals differ"
    assert {answer[case][4] for answer in many} == {3}


@pytest.mark.parametrize("case", [*(f"{case}, free" for case in CASES), "global, unit"])
def test_every_rewire_moves_entries_and_keeps_its_promises(case):
    answers = run(*PLACES[0])
    settings = make_config(*case.split(", ")).sparsity
    start = content(case.split(",")[0])
    capacity = start.layout.capacities(0, ROWS)
    for step in range(3):
        before, after = (whole(answers, case, step, moment) for moment in (0, 1))
        rows, was, now = before.slot_rows(), before.live, after.live
        assert now.sum() == was.sum() == start.lengths.sum() == answers[0][case][3]
        entry = answers[0][case][1]["journal"][step]
        assert entry["live"] == now.sum() and entry["dropped"] == entry["grown"] + entry["restored"] > 0
        assert entry["grown"] == (now & (~was | (after.columns != before.columns))).sum() > 10
        positions = rows[now] * DIMS + after.columns[now]
        assert len(np.unique(positions)) == len(positions), "a column occurs twice in a row"
        assert (after.values[~now] == 0).all() and (after.columns[~now] == DIMS).all()
        lengths, lengths_before = np.bincount(rows[now]), np.bincount(rows[was])
        assert (lengths >= np.minimum(lengths_before, settings.budget.floor)).all()
        assert (lengths <= np.maximum(lengths_before, np.minimum(capacity, settings.budget.ceiling))).all()
        if settings.budget.kind == "row":
            assert np.array_equal(lengths, lengths_before)
        if "unit" in case:
            squares = np.bincount(rows, after.values.astype(np.float64) ** 2)
            np.testing.assert_allclose(squares, 1.0, rtol=1e-5)


@pytest.mark.distributed
def test_rows_straddle_shards_and_one_is_longer_than_a_shard():
    ranges = run(4, "row_wise")[0]["global, free"][2]
    chunks = content("global").layout.offsets.numpy()
    ends = np.array([last for _, last in ranges[:-1]])
    crossed = [int(((chunks[row] < ends) & (ends < chunks[row + 1])).sum()) for row in range(ROWS)]
    assert max(crossed) >= 2 and sum(count > 0 for count in crossed) >= 2
    owned = [answer["global, free"][0][0][0] for answer in run(4, "row_wise")]
    assert any(part.first == part.last for part in owned), "every rank owns a row"


def rewire_with_nan(ranks: Ranks, sharding: str) -> list[str]:
    """What each rank is told when a value, and then a gradient, of row 20 is NaN; and whether a rewire works after."""
    told = []
    for where in ("value", "gradient"):
        trainer = make_trainer(ranks, sharding, "global", "free")
        seen, owned = triples("global", 1), trainer.table.owned()
        if where == "value" and owned.first <= 20 < owned.last:
            owned.values[owned.offsets[20 - owned.first] + 3] = np.nan
        if where == "gradient":
            seen["gradients"][seen["rows"] == 20] = np.nan
        trainer.table.put_back(owned)
        trainer.collector.load_state_dict(share(seen, ranks, 1))
        try:
            trainer.rewire(1)
        except NumericError as error:
            told.append(str(error))
        owned.values[np.isnan(owned.values)] = 1.0
        trainer.table.put_back(owned)
        trainer.collector.load_state_dict(share(triples("global", 1), ranks, 1))
        trainer.rewire(1)
        told.append(f"version {trainer.version}")
    return told


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "sharding"), [PLACES[0], PLACES[-2]])
def test_nan_is_refused_on_every_rank_with_table_and_row(ranks, sharding):
    for value, then, gradient, after in run_ranks(rewire_with_nan, ranks, sharding):
        assert value.startswith("Table item, row 20: its drop score is nan.") and "train.learning_rate" in value
        assert gradient.startswith("Table item, row 20: its grow score is nan.")
        assert then == after == "version 1"
