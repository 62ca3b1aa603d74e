"""Starts whose rows have a structure: whole blocks of columns, or n of every m."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hse_dist.config import Config, parse_config
from hse_dist.errors import ConfigError
from hse_dist.sparsity.start import StartFolder, make_start
from hse_dist.sparsity.start.hse import factorize
from hse_dist.sparsity.start.random_rows import random_entries, room

KINDS = ("local_inverse", "hse", "random")


def config(start: str, structure: dict[str, Any], **sparsity: Any) -> Config:
    own = {} if start == "random" else {start: {"regularization": 5.0, "history_power": 0.0, "dropout": 0.0}}
    given = {"start": start, "budget": {"ceiling": 24}, "structure": structure, **own, **sparsity}
    return parse_config({"tables": {"item": {"live": 8}}, "sparsity": given}, "of a test")


def dense(start: StartFolder) -> tuple[np.ndarray, np.ndarray]:
    """Values, and which positions are live."""
    offsets, columns, values = start.entries()
    rows = np.repeat(np.arange(start.rows), np.diff(offsets))
    table, live = np.zeros((start.rows, start.dims)), np.zeros((start.rows, start.dims), bool)
    table[rows, columns], live[rows, columns] = values, True
    return table, live


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [4, 8])
def test_blocks_are_whole_and_their_number_exact(histories, small_ranges: int, tmp_path: Path, kind, block) -> None:
    start = make_start(config(kind, {"kind": "block", "block": block}), histories, tmp_path / "start")
    _, live = dense(start)
    assert start.dims == 50 + -50 % block and start.live_entries == live.sum() == 8 * 50 // block * block
    by_block = live.reshape(50, -1, block)
    assert (by_block.all(2) == by_block.any(2)).all()
    assert live.sum(1).min() >= block and live.sum(1).max() <= 24
    assert np.array_equal(start.live(), live.sum(1))


@pytest.mark.parametrize("kind", KINDS)
def test_groups_have_no_more_than_they_may(histories, small_ranges: int, tmp_path: Path, kind: str) -> None:
    start = make_start(config(kind, {"kind": "n_of_m", "n": 2, "m": 8}), histories, tmp_path / "start")
    _, live = dense(start)
    groups = np.pad(live, ((0, 0), (0, 6))).reshape(50, 7, 8).sum(2)
    assert start.live_entries == live.sum() and groups.max() == 2
    # half of the table of a lower factor is empty: with groups it may have fewer entries than the budget
    assert live.sum() == 400 if kind == "random" else 300 < live.sum() <= 400


def test_the_exact_start_keeps_the_blocks_with_the_largest_sums_of_squares(histories, tmp_path: Path) -> None:
    start = make_start(config("hse", {"kind": "block", "block": 4}), histories, tmp_path / "start")
    factor, gains, _ = factorize(histories.matrix("train"), 5.0, dropout=0.0, history_power=0.0)
    factor = np.tril(factor).astype(np.float32)
    worth = (np.pad(factor, ((0, 0), (0, 2))).reshape(50, 13, 4).astype(float) ** 2).sum(2) * np.abs(gains)[:, None]
    table, live = dense(start)
    kept = live.reshape(50, 13, 4).all(2)
    counts = kept.sum(1)
    for row in range(50):
        assert worth[row][kept[row]].min() >= worth[row][~kept[row]].max()
    free = [worth[row][~kept[row]].max() for row in range(50) if counts[row] < 6]
    held = [np.sort(worth[row][kept[row]])[0] for row in range(50) if counts[row] > 1]
    assert min(held) >= max(free) * (1 - 1e-5)
    np.testing.assert_allclose(table[live], factor_at(factor, live) * start.manifest["value_scale"], rtol=1e-5)


def factor_at(factor: np.ndarray, live: np.ndarray) -> np.ndarray:
    return np.pad(factor, ((0, 0), (0, 2)))[live]


def test_the_refit_solves_for_all_of_a_block_that_a_lower_factor_has(histories, tmp_path: Path) -> None:
    start = make_start(config("local_inverse", {"kind": "block", "block": 8}), histories, tmp_path / "start")
    table, live = dense(start)
    x = histories.matrix("train").toarray().astype(np.float64)
    gram = x.T @ x + 5.0 * np.eye(50)
    for item in range(50):
        pattern = sorted({*(j for j in np.flatnonzero(live[:, item]) if j < item), item})
        solution = np.linalg.solve(gram[np.ix_(pattern, pattern)], np.eye(len(pattern))[-1])
        expected = np.zeros(50)
        expected[pattern] = solution / np.sqrt(solution[-1])
        got = table[:, item] / start.manifest["value_scale"]
        np.testing.assert_allclose(got[live[:, item]], expected[live[:, item]], rtol=1e-3, atol=1e-6)


def test_rows_that_cannot_have_so_many_entries_are_refused(histories, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can have 4 live entries.*sparsity.structure.n = 1"):
        make_start(config("hse", {"kind": "n_of_m", "n": 1, "m": 16}), histories, tmp_path / "start")


@pytest.mark.parametrize(("dims", "group"), [(30, (2, 8)), (32, (1, 4)), (9, (3, 8))])
def test_random_rows_fill_every_place_that_groups_have(dims: int, group: tuple[int, int]) -> None:
    most = room(dims, group)
    entries = random_entries(np.full(40, most), 0, dims=dims, seed=1, group=group)
    keys = entries.rows * dims + entries.columns
    assert len(np.unique(keys)) == 40 * most and entries.columns.max() < dims
    assert np.unique(entries.rows * dims + entries.columns // group[1], return_counts=True)[1].max() == group[0]
    assert np.bincount(entries.columns, minlength=dims).min() > 0
