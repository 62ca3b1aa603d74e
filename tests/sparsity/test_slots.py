"""Passes over slots, compiled and plain, against loops over rows with Python's own sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hse_dist.errors import NumericError
from hse_dist.native.library import library
from hse_dist.sparsity import growth, selection, slots, strongest
from hse_dist.sparsity.growth import SeenGradients, merge
from hse_dist.sparsity.selection import HIGHEST_KEY, Query, Selection, histogram, under
from hse_dist.tables.sharded import OwnedRows

PATHS = ["plain", pytest.param("compiled", marks=pytest.mark.skipif(library() is None, reason="kernels not built"))]
FIRST, DIMS = 100, 50


@pytest.fixture(params=PATHS, autouse=True)
def path(request, monkeypatch):
    if request.param == "plain":
        for module in (growth, selection, slots, strongest):
            monkeypatch.setattr(module, "library", lambda: None)


def make_rows(seed: int, rows: int, *, ties: bool = False) -> OwnedRows:
    """Rows 100 …, of 4 to 12 slots, some without any live entry."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(4 * rng.integers(1, 4, rows))])
    values, columns = np.zeros(offsets[-1], np.float32), np.full(offsets[-1], DIMS, np.int32)
    for row in range(rows):
        here = offsets[row] + rng.permutation(offsets[row + 1] - offsets[row])[: rng.integers(0, 9)]
        columns[here] = rng.permutation(DIMS)[: len(here)]
        values[here] = rng.choice([-1, 0, 1, 2], len(here)) if ties else rng.normal(size=len(here))
    return OwnedRows(FIRST, FIRST + rows, offsets, values, columns, DIMS)


def by_row(owned: OwnedRows):
    return [range(a, b) for a, b in zip(owned.offsets[:-1], owned.offsets[1:], strict=True)]


seeds, sizes = st.integers(0, 10_000), st.sampled_from([0, 1, 7, 3000])


@given(seed=seeds, rows=sizes)
@settings(max_examples=10, deadline=None)
def test_keys_are_those_of_live_entries_in_the_order_of_their_scores(seed, rows):
    owned, gains = make_rows(seed, rows), np.random.default_rng(seed).normal(size=rows).astype(np.float32)
    keys, live = slots.drop_keys(owned, gains)
    assert np.array_equal(keys != 0, owned.live) and keys.dtype == np.uint32
    assert live.tolist() == [int(owned.live[list(here)].sum()) for here in by_row(owned)]
    scores = np.abs(owned.values) * np.sqrt(np.abs(gains))[owned.slot_rows() - FIRST]
    order = np.argsort(keys[owned.live], kind="stable")
    assert (np.diff(scores[owned.live][order]) >= 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_no_number_names_its_row(bad):
    owned = make_rows(3, 3000)
    owned.values[np.flatnonzero(owned.live & (owned.slot_rows() >= FIRST + 2000))[[0, 500]]] = bad
    row = owned.slot_rows()[np.flatnonzero(~np.isfinite(owned.values))[0]]
    with pytest.raises(NumericError, match=f"row {row}: its drop score is {bad}"):
        slots.drop_keys(owned, np.ones(3000, np.float32))
    owned.values[~owned.live] = np.nan  # nobody reads a free slot
    owned.values[owned.live] = 1.0
    slots.drop_keys(owned, np.ones(3000, np.float32))


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("others", [False, True])
@given(seed=seeds, rows=sizes, limit=st.sampled_from([1, 4, None]), threads=st.sampled_from([1, 3]))
@settings(max_examples=10, deadline=None)
def test_the_strongest_of_each_row_stay_and_ties_go_to_the_lower_column(largest, others, seed, rows, limit, threads):
    owned = make_rows(seed, rows, ties=True)
    keys, _ = slots.drop_keys(owned, np.ones(rows, np.float32))
    limits = np.full(rows, limit) if limit else np.random.default_rng(seed).integers(0, 10, rows)
    expected = np.zeros_like(keys)
    for here, most in zip(by_row(owned), limits, strict=True):
        entries = [s for s in here if keys[s]]
        entries.sort(key=lambda s: ((-1 if largest else 1) * int(keys[s]), owned.columns[s]))
        stay = entries[most:] if others else entries[:most]
        expected[stay] = keys[stay]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        strongest.keep_strongest(owned.offsets, keys, owned.columns, limits, largest=largest, others=others)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(keys, expected)


@pytest.mark.parametrize("largest", [False, True])
@given(seed=seeds, rows=sizes, count=st.integers(0, 40))
@settings(max_examples=15, deadline=None)
def test_a_selection_takes_what_is_beyond_its_threshold_and_its_quota_of_ties(largest, seed, rows, count):
    owned = make_rows(seed, rows, ties=True)
    keys, _ = slots.drop_keys(owned, np.ones(rows, np.float32))
    row = owned.slot_rows()
    entries = sorted(
        np.flatnonzero(keys), key=lambda s: ((-1 if largest else 1) * int(keys[s]), row[s], owned.columns[s])
    )
    taken = entries[:count]
    if taken:
        threshold = int(keys[taken[-1]])
        answer = Selection(threshold, (sum(int(keys[s]) == threshold for s in taken),), len(taken))
    else:
        answer = Selection(HIGHEST_KEY if largest else 0, (0,), 0)
    counts = slots.take(owned, keys, answer, largest=largest)
    assert sorted(taken) == np.flatnonzero(keys).tolist()
    assert counts.tolist() == np.bincount(row[taken] - FIRST if taken else [], minlength=rows).tolist()


@given(seed=seeds, rows=sizes)
@settings(max_examples=10, deadline=None)
def test_live_positions_are_found_and_places_are_filled(seed, rows):
    rng, owned = np.random.default_rng(seed), make_rows(seed, rows)
    live = {(row, column) for row, column in zip(owned.slot_rows(), owned.columns, strict=True) if column < DIMS}
    wanted = sorted(
        {
            (int(r), int(c))
            for r, c in zip(rng.integers(0, max(rows, 1), rows) + FIRST, rng.integers(0, DIMS, rows), strict=True)
        }
    )
    asked_rows, asked_columns = np.array(wanted, np.int64).reshape(-1, 2).T
    found = slots.find_live(owned, asked_rows.copy(), asked_columns.copy())
    assert found.tolist() == [position in live for position in wanted]
    free = {FIRST + i: sum(owned.columns[s] == DIMS for s in here) for i, here in enumerate(by_row(owned))}
    new = []
    for position in (p for p, is_live in zip(wanted, found, strict=True) if not is_live):
        if free[position[0]]:
            free[position[0]] -= 1
            new.append(position)
    before = owned.columns.copy(), owned.values.copy()
    slots.place(owned, *np.array(new, np.int64).reshape(-1, 2).T)
    changed = owned.columns != before[0]
    assert (before[0][changed] == DIMS).all() and (owned.values[changed] == 0).all()
    assert sorted(zip(owned.slot_rows()[changed], owned.columns[changed], strict=True)) == new
    assert np.array_equal(owned.values[~changed], before[1][~changed])


def test_only_what_is_dropped_and_not_restored_becomes_free():
    owned, before = make_rows(1, 50), make_rows(1, 50)
    rng = np.random.default_rng(2)
    dropped = np.where(rng.random(len(owned.values)) < 0.5, 7, 0).astype(np.uint32) * owned.live
    restored = np.where(rng.random(len(owned.values)) < 0.5, dropped, 0).astype(np.uint32)
    slots.free(owned, dropped.astype(np.uint32), restored)
    gone = (dropped != 0) & (restored == 0)
    assert (owned.columns[gone] == DIMS).all() and (owned.values[gone] == 0).all() and gone.any()
    assert np.array_equal(owned.columns[~gone], before.columns[~gone])
    assert np.array_equal(owned.values[~gone], before.values[~gone])


@given(seed=seeds, rows=sizes)
@settings(max_examples=10, deadline=None)
def test_rows_get_length_one_but_for_rows_of_zeros(seed, rows):
    owned, before = make_rows(seed, rows), make_rows(seed, rows)
    slots.rescale_to_unit(owned)
    for here in by_row(owned):
        was = before.values[here.start : here.stop].astype(np.float64)
        norm = np.sqrt((was**2).sum()) or 1.0
        np.testing.assert_allclose(owned.values[here.start : here.stop], was / norm, rtol=1e-6)


@given(seed=seeds, count=st.sampled_from([0, 1, 5000]), threads=st.sampled_from([1, 3]))
@settings(max_examples=10, deadline=None)
def test_histograms_count_keys_and_not_their_absence(seed, count, threads):
    rng = np.random.default_rng(seed)
    keys = rng.choice(rng.integers(0, 2**32, 40, dtype=np.uint32), count) * (rng.random(count) < 0.8).astype(np.uint32)
    there, key = keys[keys != 0].astype(np.int64), int(keys.max(initial=1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for query in (Query(0, 0), Query(1, key >> 21), Query(2, key >> 10)):
            below = there[there >> (query.shift + {0: 11, 1: 11, 2: 10}[query.round]) == query.prefix]
            expected = np.bincount(below >> query.shift & (query.bins - 1), minlength=query.bins)
            found = histogram(keys, query)
            assert found.dtype == np.int64 and np.array_equal(found, expected)
            if query.round:
                left = under(keys, query)
                assert np.array_equal(np.sort(left[left != 0]), np.sort(below))
    finally:
        torch.set_num_threads(before)


def test_merged_scores_do_not_depend_on_the_order_to_the_last_bit():
    rng = np.random.default_rng(4)
    rows, columns = rng.integers(0, 2**31, 50)[rng.integers(0, 50, 4000)], rng.integers(0, 6, 4000)
    gradients = (rng.normal(size=4000) * 10.0 ** rng.integers(-6, 6, 4000)).astype(np.float32)
    visited = np.concatenate([rows, rng.choice(rows, 500)])
    found = [merge(SeenGradients(rows, columns, gradients), visited)]
    for _ in range(3):
        order = rng.permutation(4000)
        found.append(merge(SeenGradients(rows[order], columns[order], gradients[order]), rng.permutation(visited)))
    assert all(
        part.tobytes() == other.tobytes() for again in found[1:] for part, other in zip(found[0], again, strict=True)
    )
    positions = list(zip(*(part.tolist() for part in found[0][:2]), strict=True))
    assert positions == sorted(set(zip(rows.tolist(), columns.tolist(), strict=True)))
    for (row, column), score in zip(positions[::17], found[0][2][::17], strict=True):
        here = (rows == row) & (columns == column)
        expected = gradients[here].astype(np.float64).sum() / (visited == row).sum()
        assert score == pytest.approx(expected, rel=1e-6, abs=1e-12)
