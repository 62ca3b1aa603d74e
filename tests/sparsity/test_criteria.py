"""Scores of live entries against their formulas, entry by entry; and gradients of live entries against autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hse_dist.config import DropSettings, ModelSettings
from hse_dist.data.batch import Batch
from hse_dist.errors import NumericError
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.model.histories import Histories
from hse_dist.sparsity.criteria import Evidence, LiveSightings, popularity_of, score_keys, weigh
from hse_dist.sparsity.selection import RESERVE_KEY, Selection, order_keys, score_of
from hse_dist.sparsity.shrink import freed_below, shrink
from hse_dist.tables.block import SparseRows
from hse_dist.tables.sharded import OwnedRows
from hse_dist.testing.tables import Content

ROWS, DIMS = 12, 50
CONTENT = Content.random(2, 20, DIMS, 8, longest=12, long_rows={})
FIRST, LAST = 4, 16


def seen_of(owned: OwnedRows) -> tuple[np.ndarray, np.ndarray]:
    """Sums of two thirds of the live entries, and of some that are not live."""
    rng = np.random.default_rng(0)
    live = (owned.slot_rows() * DIMS + owned.columns)[owned.live]
    positions = np.unique(np.concatenate([rng.permutation(live)[: 2 * len(live) // 3], rng.integers(0, 20 * DIMS, 40)]))
    return positions, rng.normal(size=len(positions))


@pytest.mark.parametrize("power", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["magnitude", "sensitivity", "movement", "fisher", "activity", "soft_threshold"])
def test_keys_have_the_order_of_the_formula(kind: str, power: float) -> None:
    owned, gains = CONTENT.owned(FIRST, LAST), CONTENT.gains[FIRST:LAST]
    positions, sums = seen_of(owned)
    lengths = np.random.default_rng(1).uniform(size=DIMS).astype(np.float32)
    popularity = popularity_of(np.arange(20, 0, -1) ** 2, power)
    own = None if popularity is None else popularity[FIRST:LAST]
    evidence = Evidence(positions, sums, lengths, own, FIRST)
    make = score_keys(DropSettings(kind=kind, popularity_power=power), evidence, 0, 1)
    keys, live = make(owned, weigh(gains, evidence))
    assert np.array_equal(live, CONTENT.lengths[FIRST:LAST])
    rows, known = owned.slot_rows(), dict(zip(positions.tolist(), sums, strict=True))
    expected = []
    for slot in np.flatnonzero(owned.live):
        value, column, row = float(owned.values[slot]), owned.columns[slot], rows[slot]
        mine, magnitude = known.get(row * DIMS + column), abs(value) * abs(CONTENT.gains[row]) ** 0.5
        if mine is None and kind in ("sensitivity", "movement", "fisher"):
            assert keys[slot] == 0  # never seen: not to be dropped
            continue
        score = {
            "magnitude": lambda m=magnitude: m,
            "soft_threshold": lambda m=magnitude: m,
            "sensitivity": lambda s=mine: abs(s),
            "movement": lambda s=mine: -s,
            "fisher": lambda s=mine, v=value: 0.5 * v**2 * s,
            "activity": lambda m=magnitude, c=column: m * lengths[c],
        }[kind]()
        expected.append(score * ((20 - row) ** 2 / 400) ** power)
        assert score_of(int(keys[slot])) == pytest.approx(expected[-1], rel=1e-5)
    assert len(expected) > 20 and (keys[~owned.live] == 0).all()


@pytest.mark.parametrize("kind", ["sensitivity", "movement", "fisher"])
def test_where_the_number_falls_what_no_step_saw_goes_last_by_magnitude(kind: str) -> None:
    owned, gains = CONTENT.owned(FIRST, LAST), CONTENT.gains[FIRST:LAST]
    positions, sums = seen_of(owned)
    plain, reserve = Evidence(positions, sums, first=FIRST), Evidence(positions, sums, first=FIRST, reserve=True)
    (keys, _), (more, _) = (score_keys(DropSettings(kind=kind), one, 0, 1)(owned, gains) for one in (plain, reserve))
    unseen = owned.live & (keys == 0)
    assert unseen.sum() > 10 and np.array_equal(more[~unseen], keys[~unseen])
    assert more[unseen].min() >= RESERVE_KEY > keys.max()
    sizes = np.abs(owned.values[unseen]) * np.sqrt(np.abs(gains))[owned.slot_rows()[unseen] - FIRST]
    assert (np.diff(more[unseen][np.argsort(sizes)].astype(np.int64)) >= 0).all()
    assert score_of(int(more[unseen][0])) is None


def test_random_keys_depend_on_seed_version_and_position_alone() -> None:
    def keys(first: int, seed: int, version: int) -> np.ndarray:
        owned = CONTENT.owned(first, LAST)
        found, _ = score_keys(DropSettings(kind="random"), Evidence(), seed, version)(owned, CONTENT.gains[first:LAST])
        return found[owned.slot_rows() >= 10]

    assert np.array_equal(keys(FIRST, 1, 1), keys(10, 1, 1)) and len(np.unique(keys(10, 1, 1))) > 20
    assert not np.array_equal(keys(10, 1, 1), keys(10, 2, 1)) and not np.array_equal(keys(10, 1, 1), keys(10, 1, 2))


def test_scores_come_back_from_keys() -> None:
    scores = np.array([0.0, 1.5, -2.25, 3e-39, -7e30], np.float32)
    assert [score_of(int(key)) for key in order_keys(scores)] == scores.tolist()
    assert score_of(0) is None and score_of(2**32 - 1) is None


@pytest.mark.parametrize("threshold", [0.6, None])
def test_what_stays_shrinks_by_the_threshold(threshold: float | None) -> None:
    values = np.array([1.0, -0.5, 0.3, 0, -2.0, 0.4, 0.2, 0], np.float32)
    rows = OwnedRows(0, 2, np.array([0, 4, 8]), values.copy(), np.array([0, 1, 2, 9, 0, 1, 2, 9], np.int32), 9)
    freed = np.array([0, 0, 1, 0, 0, 0, 1, 0], bool)
    shrink(rows, np.array([1.0, -4.0], np.float32), freed, threshold)
    # √|gain| is 1 and 2: at 0.6 the second row loses 0.3; on its own it frees a score of 0.4, and loses 0.2
    expected = [0.4, -0.5, 0.3, 0, -1.7, 0.1, 0.2, 0] if threshold else [0.7, -0.2, 0.3, 0, -1.8, 0.2, 0.2, 0]
    np.testing.assert_allclose(rows.values, expected, rtol=1e-6)


def test_the_threshold_is_that_of_what_is_freed() -> None:
    low, high = (int(order_keys(np.array([score], np.float32))[0]) for score in (0.5, 2.0))
    assert freed_below(Selection(high, (0,), 5), Selection(low, (0,), 3)) == 0.5
    assert freed_below(Selection(high, (0,), 5), Selection(2**32 - 1, (0,), 0)) == 2.0
    assert freed_below(Selection(high, (0,), 5), Selection(low, (0,), 5)) == 0.0  # all came back: nothing shrinks


@pytest.mark.parametrize("norm", ["unit", "free"])
@pytest.mark.parametrize("path", ["compiled", "plain"])
@pytest.mark.parametrize("kind", ["movement", "fisher"])
def test_live_entries_are_seen_with_their_gradients(kind: str, path: str, norm: str) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 5, 9)
    columns = torch.from_numpy(np.concatenate([rng.permutation(20)[:n] for n in lengths]))
    offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))
    leaf = torch.from_numpy(rng.normal(size=lengths.sum()).astype(np.float32)).requires_grad_()
    gains = torch.ones(9) if norm == "free" else None
    rows = SparseRows(offsets, columns, leaf * 1.0, gains, 20)
    batch = Batch(torch.arange(9) * 10, torch.tensor([0, 3, 5, 9]), torch.tensor([0, 1, 2, 3, 1, 4, 5, 6, 8]))
    model, seen = Autoencoder(ModelSettings(row_norm=norm)), LiveSightings(DropSettings(kind=kind))
    seen.watch(rows)
    histories = Histories(batch.offsets, batch.positions, None, torch.full((3,), 1 / 3, dtype=torch.float64))
    loss, _ = (model.fused_loss if path == "compiled" else model.plain_loss)(model.block(rows), histories, collect=0)
    loss.backward()
    seen.collect(rows, batch.candidates)
    state = seen.state_dict()
    values, grad = leaf.detach(), leaf.grad
    expected = values * grad if kind == "movement" else grad**2
    assert float(expected.abs().sum()) > 0
    np.testing.assert_allclose(state["live_gradients"], expected, rtol=1e-6)
    np.testing.assert_array_equal(state["live_rows"], np.repeat(np.arange(9) * 10, lengths))
    np.testing.assert_array_equal(state["live_columns"], columns)
    # one step further in the same direction changes the loss by what the sums say
    if kind == "movement" and norm == "free":
        with torch.no_grad():
            moved = SparseRows(offsets, columns, values * (1 + 1e-3), gains, 20)
            change = float(model.plain_loss(model.block(moved), histories, collect=0)[0] - loss)
        assert change == pytest.approx(1e-3 * state["live_gradients"].sum(), abs=2e-6)


def test_a_gradient_that_is_no_number_is_refused() -> None:
    owned = CONTENT.owned(FIRST, LAST)
    positions, sums = seen_of(owned)
    make = score_keys(DropSettings(kind="sensitivity"), Evidence(positions, sums * np.nan, first=FIRST), 0, 1)
    with pytest.raises(NumericError, match="its drop score is nan"):
        make(owned, CONTENT.gains[FIRST:LAST])
