"""The global cut over files, against one sort of all entries."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hse_dist.errors import NumericError
from hse_dist.sparsity.selection import RadixSelection
from hse_dist.sparsity.start.cut import Budget, cut
from hse_dist.sparsity.start.folder import RANGE_ROWS, row_ranges
from hse_dist.sparsity.start.triples import Triples, write_parts

ROWS = 2 * RANGE_ROWS + 5  # three ranges


def dense_cut(dense: np.ndarray, gains: np.ndarray, budget: Budget) -> np.ndarray:
    """Which entries stay, by one stable sort of the rows that have entries: slow and plain."""
    score = (np.abs(dense.astype(np.float64)) * np.sqrt(np.abs(gains))[:, None]).astype(np.float32)
    place = np.empty(dense.shape, np.int64)
    place[np.arange(len(dense))[:, None], np.argsort(-score, axis=1, kind="stable")] = np.arange(dense.shape[1])
    live = dense != 0
    kept = live & (place < budget.floor)
    rivals = np.flatnonzero((live & ~kept & (place < budget.ceiling)).ravel())
    best = rivals[np.argsort(-score.ravel()[rivals], kind="stable")]
    kept.ravel()[best[: max(budget.live - int(kept.sum()), 0)]] = True
    return kept


def run_cut(dense: np.ndarray, rows: np.ndarray, budget: Budget, gains: np.ndarray | None, folder: Path, parts: int):
    """Cut a table whose row `rows[r]` is `dense[r]` and whose other rows have one small entry."""
    others = np.setdiff1d(np.arange(ROWS), rows)
    r, columns = np.nonzero(dense)
    all_rows = np.concatenate([rows[r], others])
    all_columns = np.concatenate([columns, np.zeros(len(others), np.int64)])
    values = np.concatenate([dense[r, columns], np.full(len(others), 1e-3)]).astype(np.float32)
    shuffled = np.random.default_rng(0).permutation(len(values))
    for part, index in enumerate(np.array_split(shuffled, parts)):
        write_parts(Triples(all_rows[index], all_columns[index], values[index]), folder / "work" / "parts", part)
    all_gains = None
    if gains is not None:
        all_gains = np.full(ROWS, 1e-6)
        all_gains[rows] = gains
    total = Budget(budget.live + len(others), budget.floor, budget.ceiling, budget.unit)
    counts = np.ones(ROWS, np.int64)
    made = cut(
        folder / "work",
        folder,
        counts,
        total,
        gains=all_gains,
        new_selection=RadixSelection,
        at_a_time=1,
    )
    return made, len(others)


def read(folder: Path, rows: int, dims: int, manifest: dict):
    import pyarrow.parquet as pq

    table = np.zeros((rows, dims))
    gains = np.zeros(rows)
    for index, (first, last) in enumerate(row_ranges(rows)):
        entries = pq.read_table(folder / "entries" / f"range={index:05d}.parquet", partitioning=None)
        row, column = (entries[name].to_numpy().astype(np.int64) for name in ("row", "column"))
        assert (np.diff(row * dims + column) > 0).all() and ((row >= first) & (row < last)).all()
        table[row, column] = entries["value"].to_numpy()
        gains[first:last] = pq.read_table(folder / "rows" / f"range={index:05d}.parquet", partitioning=None)["gain"]
    return table, gains


@st.composite
def tables(draw: st.DrawFn):
    rows = np.array(sorted(draw(st.sets(st.integers(0, ROWS - 1), min_size=1, max_size=12))))
    seed, levels = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([1, 3, 1000]))
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, levels + 1, (len(rows), 9)) * rng.choice([-0.5, 0.5], (len(rows), 9))
    dense[:, 1:][rng.random((len(rows), 8)) < 0.3] = 0  # every row keeps an entry
    floor = draw(st.integers(1, 3))
    live = draw(st.integers(floor, 9)) * len(rows)
    budget = Budget(live, floor, draw(st.integers(3, 12)), unit=False)
    gains = draw(st.sampled_from([None, rng.choice([-0.25, 1.0, 4.0], len(rows))]))
    return dense.astype(np.float32), rows, budget, gains


@given(tables(), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_the_cut_equals_one_sort(case, parts: int) -> None:
    dense, rows, budget, gains = case
    with TemporaryDirectory() as folder:
        made, others = run_cut(dense, rows, budget, gains, Path(folder), parts)
        table, found_gains = read(Path(folder), ROWS, 9, made)
    used = -1 / (dense.astype(np.float64) ** 2).sum(1) if gains is None else gains
    # a row of one entry keeps it under any floor, so the others neither compete nor leave anything over
    kept = dense_cut(dense, used, budget)
    np.testing.assert_array_equal(table[rows] != 0, kept)
    assert made["live_entries"] == kept.sum() + others
    np.testing.assert_allclose(table[rows], np.where(kept, dense, 0) * made["value_scale"], rtol=1e-6)
    np.testing.assert_allclose(found_gains[rows], used * made["gain_scale"], rtol=1e-6)
    np.testing.assert_allclose(np.sqrt((table**2).sum(1)).mean(), 1, rtol=1e-5)
    np.testing.assert_allclose(np.abs(found_gains).mean(), 1, rtol=1e-5)


def test_unit_rows_have_length_one_and_no_gain(tmp_path: Path) -> None:
    dense = np.array([[3, 0, 4, 1], [0.1, 0.1, 0, 0]], np.float32)
    made, _ = run_cut(dense, np.array([0, RANGE_ROWS]), Budget(4, 1, 2, True), np.array([2.0, 5.0]), tmp_path, 1)
    table, gains = read(tmp_path, ROWS, 4, made)
    np.testing.assert_allclose(np.sqrt((table**2).sum(1)), 1, rtol=1e-6)
    np.testing.assert_allclose(table[0], [0.6, 0, 0.8, 0], rtol=1e-6)
    assert (gains == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_row_without_a_length_is_named(tmp_path: Path, bad: float) -> None:
    rows = np.arange(20)
    values = np.where(rows == 13, bad, 1.0).astype(np.float32)
    write_parts(Triples(rows, rows, values), tmp_path / "work" / "parts", 0)
    with pytest.raises(NumericError, match="Row 13 of table item"):
        cut(
            tmp_path / "work",
            tmp_path,
            np.ones(20, np.int64),
            Budget(20, 1, 2, False),
            gains=None,
            new_selection=RadixSelection,
            at_a_time=1,
        )
