"""The random start: exact lengths, distinct columns, and rows that depend on themselves alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hse_dist.sparsity.start.random_rows import random_entries


@given(st.integers(1, 300), st.integers(0, 2**70), st.data())
@settings(max_examples=60, deadline=None)
def test_columns_are_distinct_and_rows_have_length_one(dims: int, seed: int, data: st.DataObject) -> None:
    lengths = np.array(data.draw(st.lists(st.integers(1, dims), min_size=1, max_size=8)), np.int64)
    entries = random_entries(lengths, 5, dims=dims, seed=seed)
    np.testing.assert_array_equal(np.bincount(entries.rows, minlength=5 + len(lengths))[5:], lengths)
    position = entries.rows * dims + entries.columns
    assert (np.diff(position) > 0).all() and entries.columns.min() >= 0 and entries.columns.max() < dims
    norms = np.bincount(entries.rows - 5, entries.values.astype(np.float64) ** 2)
    np.testing.assert_allclose(norms, 1.0, rtol=1e-5)


def test_a_row_depends_on_no_other() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 300)
    whole = random_entries(lengths, 0, dims=1000, seed=3)
    for first, last in ((0, 1), (1, 138), (138, 300)):
        part = random_entries(lengths[first:last], first, dims=1000, seed=3)
        mine = (whole.rows >= first) & (whole.rows < last)
        for name in ("rows", "columns", "values"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[mine])


@pytest.mark.parametrize("dims", [97, 4096, 2**24 - 1])
def test_columns_are_uniform_and_values_normal(dims: int) -> None:
    entries = random_entries(np.full(5000, 32), 0, dims=dims, seed=1)
    columns = np.bincount(entries.columns * 64 // dims, minlength=64)
    width = np.bincount(np.arange(dims) * 64 // dims, minlength=64) / dims
    chi_square = ((columns - columns.sum() * width) ** 2 / (columns.sum() * width)).sum()
    assert chi_square < 130  # 63 degrees of freedom: beyond 120 once in 40 000 seeds
    scaled = entries.values * np.sqrt(32)
    assert abs(scaled.mean()) < 0.02 and abs(np.mean(np.abs(scaled) < 0.6745) - 0.5) < 0.01


def test_seeds_and_rows_differ() -> None:
    first, second = (random_entries(np.full(50, 8), 0, dims=10**6, seed=seed) for seed in (0, 1))
    assert np.mean(first.columns == second.columns) < 0.01
    assert len(np.unique(first.columns)) > 390 and len(np.unique(first.values)) > 390
