"""New rows from their neighbours, against plain sums in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp

from hse_dist.sparsity import fold_in as module
from hse_dist.sparsity.fold_in import (
    LEAST_SHARED,
    MOST_SHARED,
    Folded,
    FoldIn,
    Level,
    quiet_columns,
    strongest,
    user_weights,
)

OLD, NEW, DIMS, USERS, ENTRIES = 20, 6, 24, 40, 5
SCORE = 2.0


def data(sign: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Histories [users, items] in which the last new item has no user, counts, rows [old, D], gains."""
    rng = np.random.default_rng(3)
    histories = (rng.random((USERS, OLD + NEW)) < 0.25).astype(float)
    histories[:, -1] = 0
    rows = rng.normal(size=(OLD, DIMS)) * (rng.random((OLD, DIMS)) < 0.4)
    return histories, histories.sum(0).astype(np.int64), rows, sign * rng.random(OLD) + sign


def level(sign: float = 1.0) -> tuple[Level, np.ndarray]:
    """With the popularity of new items."""
    histories, _, rows, _ = data(sign)
    weights = user_weights(histories.sum(1))
    return Level(weights @ histories[:, :OLD] @ rows, SCORE), weights @ histories[:, OLD:]


def fold(parts: int, *, unit: bool, own: bool, sign: float = 1.0) -> Folded:
    histories, counts, rows, gains = data(sign)
    ranks = [FoldIn(counts, np.arange(OLD, OLD + NEW), DIMS, ENTRIES) for _ in range(parts)]
    for number, part in enumerate(np.array_split(np.arange(USERS), parts * 3)):
        known = np.flatnonzero(histories[part, :OLD].any(0))
        own_rows = sp.csr_matrix(rows[known])
        ranks[number % parts].add(sp.csr_matrix(histories[part]), known, own_rows, gains[known])
    ranks[0].merge([(rank.sums, rank.facts) for rank in ranks])
    return ranks[0].result(*level(sign), unit=unit, own_columns=own)


def slow(*, unit: bool, own: bool, sign: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows [new, D] and gains by loops."""
    histories, counts, rows, gains = data(sign)
    middle, popularity = level(sign)
    found, found_gains = np.zeros((NEW, DIMS)), np.full(NEW, np.nan)
    for new in range(NEW - 1):
        total, count, length, gain = np.zeros(DIMS), 0.0, 0.0, 0.0
        for user in np.flatnonzero(histories[:, OLD + new]):
            for item in np.flatnonzero(histories[user, :OLD]):
                weight = 1 / np.sqrt(histories[user].sum()) / np.sqrt(counts[item])
                total += weight * rows[item]
                count, gain = count + weight, gain + weight * gains[item]
                length += weight * np.linalg.norm(rows[item])
        length, gain = (1.0, 1.0) if unit else (length / count, gain / count)
        row = OLD + new
        rest = row if own and row < DIMS else int(quiet_columns(np.array([row]), middle.pooled)[0])
        total[rest] = 0
        total[np.argsort(-np.abs(total))[ENTRIES - 1 :]] = 0
        total /= np.linalg.norm(total)
        # the share at which the mean score is SCORE times the popularity
        share = SCORE * popularity[new] / abs(gain * length * total @ middle.pooled)
        share = min(max(share, LEAST_SHARED), MOST_SHARED)
        total *= share * np.sign(gain)
        total[rest] = np.sqrt(1 - share**2)
        found[new], found_gains[new] = total * length, gain
    return found, found_gains


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("unit", "sign"), [(True, 1.0), (False, 1.0), (False, -1.0)])
def test_new_rows_point_where_their_users_point(parts, own, unit, sign):
    folded = fold(parts, unit=unit, own=own, sign=sign)
    dense = sp.csr_matrix((folded.values, folded.columns, folded.offsets), shape=(NEW, DIMS)).toarray()
    wanted, gains = slow(unit=unit, own=own, sign=sign)
    assert dense[:-1] == pytest.approx(wanted[:-1], abs=1e-5)
    assert folded.gains[:-1] == pytest.approx(gains[:-1], rel=1e-5)
    assert (np.diff(folded.offsets) <= ENTRIES).all()
    for first, last in pairwise(folded.offsets.tolist()):
        assert (np.diff(folded.columns[first:last]) > 0).all()


def test_pieces_of_users_and_sums_that_are_held_change_nothing(monkeypatch):
    whole = fold(2, unit=False, own=True)
    monkeypatch.setattr(module, "POOLED_ENTRIES", 40)
    monkeypatch.setattr(module, "HELD_ENTRIES", 1)
    found = fold(2, unit=False, own=True)
    assert np.array_equal(found.columns, whole.columns) and np.array_equal(found.offsets, whole.offsets)
    assert found.values == pytest.approx(whole.values, rel=1e-6) and found.gains == pytest.approx(whole.gains, rel=1e-6)


def test_sums_hold_no_more_than_they_may(monkeypatch):
    histories, counts, rows, gains = data()
    monkeypatch.setattr(module, "KEPT", 2)
    monkeypatch.setattr(module, "KEPT_OF_USERS", 3)
    folding = FoldIn(counts, np.arange(OLD, OLD + NEW), DIMS, ENTRIES)
    for part in np.array_split(np.arange(USERS), 3):
        folding.add(sp.csr_matrix(histories[part]), np.arange(OLD), sp.csr_matrix(rows), gains)
    weights = user_weights(histories.sum(1))[:, None] * histories[:, :OLD] / np.sqrt(np.maximum(counts[:OLD], 1))
    pooled = weights @ rows
    pooled[np.abs(pooled) < np.sort(np.abs(pooled), axis=1)[:, [-3 * ENTRIES]]] = 0
    wanted = histories[:, OLD:].T @ pooled
    wanted[np.abs(wanted) < np.sort(np.abs(wanted), axis=1)[:, [-2 * ENTRIES]]] = 0
    assert folding.sums.toarray() == pytest.approx(wanted)


def test_mean_scores_stand_to_popularity_as_they_should():
    found, popularity = level()
    folded = fold(1, unit=True, own=True)
    shared = sp.csr_matrix((folded.values, folded.columns, folded.offsets), shape=(NEW, DIMS)).toarray()[: DIMS - OLD]
    assert np.linalg.norm(shared, axis=1) == pytest.approx(np.ones(DIMS - OLD))
    shared[np.arange(DIMS - OLD), np.arange(OLD, DIMS)] = 0
    size = np.linalg.norm(shared, axis=1)
    inside = (size > LEAST_SHARED + 1e-6) & (size < MOST_SHARED - 1e-6)
    assert inside.sum() >= 2
    assert np.abs(shared @ found.pooled)[inside] == pytest.approx(SCORE * popularity[: DIMS - OLD][inside], rel=1e-5)


def test_an_item_without_neighbours_has_one_entry_of_usual_size():
    for own in (False, True):
        folded = fold(1, unit=False, own=own, sign=-1.0)
        first = folded.offsets[-2]
        assert folded.offsets[-1] - first == 1 and folded.values[first] == 1.0 and 0 <= folded.columns[first] < DIMS
        assert -2.0 <= folded.gains[-1] <= -1.0


def test_quiet_columns_are_those_that_users_have_least_in():
    pooled = np.random.default_rng(0).normal(size=5000)
    chosen = quiet_columns(np.arange(300), pooled)
    assert np.abs(pooled[chosen]).mean() < np.abs(pooled).mean() / 5 and len(set(chosen.tolist())) > 250
    assert np.array_equal(chosen[100:], quiet_columns(np.arange(100, 300), pooled))


def test_the_strongest_entries_of_a_row():
    rows = sp.csr_matrix(np.array([[1.0, -3.0, 2.0, -2.0], [0.0, 0.0, 0.0, 4.0]]))
    assert strongest(rows.copy(), 2).toarray().tolist() == [[0, -3, 2, 0], [0, 0, 0, 4]]
    assert strongest(rows.copy(), 0).nnz == 0
