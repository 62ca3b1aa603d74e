"""Positions as blocks, and limits on groups of columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hse_dist.config import StructureSettings, parse_config
from hse_dist.errors import ConfigError
from hse_dist.ranks import Ranks
from hse_dist.sparsity.client import GroupTransport
from hse_dist.sparsity.rewire import Candidates, rewire
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.structure import block_positions
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.tables import Content


def test_a_block_has_the_length_of_its_scores() -> None:
    rows, columns = np.array([0, 0, 0, 2, 2]), np.array([3, 4, 7, 7, 8])
    found = block_positions(rows, columns, np.array([1, 3, -4, 2, -2], np.float32), 4)
    assert [part.tolist() for part in found] == [[0, 0, 2, 2], [0, 1, 1, 2], [1, 5, 2, 2]]
    assert block_positions(rows, columns, rows.astype(np.float32), 1)[1] is columns


def full_groups(ranks: Ranks) -> tuple[list[int], dict[str, Any]]:
    """All candidates are in groups that stay full, as nothing of them is weak enough to go."""
    sparsity = parse_config(
        {
            "tables": {"item": {"live": 2, "dims": 16, "chunk_width": 8}},
            "sparsity": {
                "start": "random",
                "structure": {"kind": "n_of_m", "n": 2, "m": 4},
                "schedule": {"interval": 1, "stop": 1.0},
                "grow": {"window": 1},
            },
        },
        "of a test",
    ).sparsity
    rows = Content([np.array([0, 1, 8])] * 4, [np.array([2, 3, 1], np.float32)] * 4, np.ones(4, np.float32), 16, 8)
    owned = rows.owned(0, 4)
    server = SparsityServer(sparsity, 10, ranks.size)
    candidates = Candidates(np.arange(4), np.full(4, 2), np.ones(4, np.float32))
    transport = GroupTransport(ranks, lambda: server)
    rewire(owned, np.ones(4, np.float32), candidates, transport, sparsity, version=0, step=1, seed=0)
    return owned.columns.tolist(), server.journal[-1]


def test_where_all_groups_are_full_nothing_grows_and_the_journal_says_so() -> None:
    ((columns, entry),) = run_ranks(full_groups, 1)
    assert columns == [0, 1, 8, *[16] * 5] * 4
    assert entry["dropped"] == entry["restored"] > 0 == entry["grown"] and entry["live"] == 12
    assert "its group of columns full" in entry["note"]


@pytest.mark.parametrize(
    ("table", "sparsity", "message"),
    [
        (
            {"chunk_width": 8},
            {"structure": {"block": 16}},
            "chunk_width = 8 is no multiple of sparsity.structure.block",
        ),
        ({"dims": 100}, {"structure": {"block": 8}}, "tables.item.dims = 100 is no multiple"),
        ({"live": 4}, {"structure": {"block": 8}}, "sparsity.budget.floor = 1 in whole blocks"),
        ({"live": 20}, {"structure": {"block": 8}, "budget": {"ceiling": 23}}, "ceiling = 23 in whole blocks"),
        ({"live": 20}, {"structure": {"block": 8}, "budget": {"kind": "row"}}, "live = 20 is no multiple"),
        ({}, {"structure": {"kind": "n_of_m", "n": 4, "m": 4}}, "sparsity.structure.n = 4 is no limit"),
        ({"dims": 64, "live": 32}, {"structure": {"kind": "n_of_m", "n": 1, "m": 4}}, "exceeds the 16 entries"),
    ],
)
def test_what_does_not_fit_is_refused_with_all_paths(table, sparsity, message: str) -> None:
    sparsity = {"start": "random", **sparsity}
    sparsity["structure"] = {"kind": "block", **sparsity["structure"]}
    with pytest.raises(ConfigError, match=message):
        parse_config({"tables": {"item": table}, "sparsity": sparsity}, "of a test")


def test_a_unit_is_what_lives_together() -> None:
    assert [StructureSettings(kind=kind, block=16).unit for kind in ("single", "block", "n_of_m")] == [1, 16, 1]
