"""A rewire against its promises: exact count, no duplicate columns, floors, ceilings, and the right entries.

One process, several servers' clients in threads: the conversation is real, only the carrier is a queue.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hse_dist.config import BudgetSettings, GrowSettings, ScheduleSettings, SparsitySettings
from hse_dist.errors import NumericError, ProtocolError
from hse_dist.sparsity.budget import row_numbers
from hse_dist.sparsity.growth import SeenGradients, merge
from hse_dist.sparsity.messages import Event, Open
from hse_dist.sparsity.rewire import Candidates, rewire
from hse_dist.sparsity.schedule import LiveCounts, live_after
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.slots import rescale_to_unit
from hse_dist.tables.sharded import OwnedRows


class ThreadTransport:
    """Ranks are threads that meet at a barrier."""

    def __init__(self, server: SparsityServer, ranks: int) -> None:
        self.server, self.barrier, self.box = server, threading.Barrier(ranks, timeout=20), [None] * ranks
        self.replies: list = []
        self.local = threading.local()

    def ask(self, message):
        self.box[self.local.rank] = message
        if self.barrier.wait() == 0:
            self.replies = self.server.decide(list(self.box))
        self.barrier.wait()
        reply = self.replies[self.local.rank]
        self.barrier.wait()
        return reply


def make_rows(rng, rows: int, dims: int, width: int, *, ties: bool) -> OwnedRows:
    chunks = rng.integers(1, 4, rows)
    offsets = np.concatenate([[0], np.cumsum(chunks * width)])
    values, columns = np.zeros(offsets[-1], np.float32), np.full(offsets[-1], dims, np.int32)
    for r in range(rows):
        live = rng.integers(1, min(chunks[r] * width, dims) + 1)
        slots = offsets[r] + rng.permutation(chunks[r] * width)[:live]
        columns[slots] = rng.permutation(dims)[:live]
        values[slots] = rng.integers(1, 4, live) if ties else rng.normal(size=live)
    return OwnedRows(0, rows, offsets, values, columns, dims)


def part(rows: OwnedRows, first: int, last: int) -> OwnedRows:
    a, b = rows.offsets[first], rows.offsets[last]
    return OwnedRows(
        first, last, rows.offsets[first : last + 1] - a, rows.values[a:b].copy(), rows.columns[a:b].copy(), rows.dims
    )


def make_candidates(rng, rows: int, dims: int, count: int, *, ties: bool) -> Candidates:
    triples = SeenGradients(
        rng.integers(0, rows, count),
        rng.integers(0, dims, count),
        (rng.integers(1, 4, count) if ties else rng.normal(size=count)).astype(np.float32),
    )
    return Candidates(*merge(triples, np.arange(rows)))


def run(
    rows: OwnedRows, bounds, candidates, config: SparsitySettings, gains, step=1, goal=None
) -> tuple[OwnedRows, SparsityServer]:
    """Rewire `rows` split at `bounds` over as many ranks; `goal`: how many entries the schedule leaves in the end."""
    ranks = len(bounds) - 1
    server = SparsityServer(config, 10, ranks)
    if goal is not None:
        server.record_start("random", LiveCounts(int(rows.live.sum()), goal))
    transport = ThreadTransport(server, ranks)
    parts = [part(rows, bounds[i], bounds[i + 1]) for i in range(ranks)]
    failures: list[BaseException] = []

    def work(rank: int) -> None:
        transport.local.rank = rank
        a, b = bounds[rank], bounds[rank + 1]
        own = None
        if candidates is not None:
            mine = (candidates.rows >= a) & (candidates.rows < b)
            own = Candidates(candidates.rows[mine], candidates.columns[mine], candidates.scores[mine])
        try:
            rewire(parts[rank], gains[a:b], own, transport, config, version=0, step=step, seed=7)
        except BaseException as error:
            failures.append(error)
            transport.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    if failures:
        raise next((f for f in failures if not isinstance(f, threading.BrokenBarrierError)), failures[0])
    joined = OwnedRows(
        0,
        rows.last,
        rows.offsets,
        np.concatenate([p.values for p in parts]),
        np.concatenate([p.columns for p in parts]),
        rows.dims,
    )
    return joined, server


def check_promises(before: OwnedRows, after: OwnedRows, config: SparsitySettings) -> None:
    assert after.live.sum() == before.live.sum()
    assert np.all(after.values[~after.live] == 0)
    kept = after.live & before.live & (after.columns == before.columns)
    new = after.live & ~kept
    assert np.array_equal(after.values[kept & (after.values != 0)], before.values[kept & (after.values != 0)])
    assert np.all(after.values[new] == 0)
    for r in range(after.last):
        a, b = after.offsets[r], after.offsets[r + 1]
        columns = after.columns[a:b][after.live[a:b]]
        assert len(np.unique(columns)) == len(columns)
        was = before.live[a:b].sum()
        assert len(columns) >= min(was, config.budget.floor)
        assert len(columns) <= max(was, config.budget.ceiling)
        if config.budget.kind == "row":
            assert len(columns) == was


CASES = {
    "global": SparsitySettings(budget=BudgetSettings(floor=2, ceiling=9), schedule=ScheduleSettings(drop_fraction=0.6)),
    "row": SparsitySettings(budget=BudgetSettings(kind="row"), schedule=ScheduleSettings(drop_fraction=0.6)),
    "random": SparsitySettings(
        schedule=ScheduleSettings(drop_fraction=0.9), grow=GrowSettings(kind="random", explore=3)
    ),
}


@pytest.mark.parametrize("case", CASES)
@given(seed=st.integers(0, 10**6), ties=st.booleans(), count=st.sampled_from([0, 3, 60, 400]))
@settings(max_examples=25, deadline=None)
def test_promises_hold_and_do_not_depend_on_the_ranks(case, seed, ties, count):
    rng = np.random.default_rng(seed)
    rows, config = make_rows(rng, 8, 20, 4, ties=ties), CASES[case]
    candidates = None if case == "random" else make_candidates(rng, 8, 20, count, ties=ties)
    gains = rng.normal(size=8).astype(np.float32)
    one, server = run(rows, [0, 8], candidates, config, gains)
    check_promises(rows, one, config)
    assert server.version == 1 and server.journal[0]["live"] == rows.live.sum()
    for bounds in ([0, 3, 8], [0, 0, 5, 5, 8]):
        many, _ = run(rows, bounds, candidates, config, gains)
        assert np.array_equal(one.columns, many.columns) and one.values.tobytes() == many.values.tobytes()


FALLING = ScheduleSettings(
    kind="gradual", live_start=64, interval=1, fall="linear", fall_end=0.5, stop=1.0, drop_fraction=0.4
)
FALLS = {
    "global": SparsitySettings(budget=BudgetSettings(floor=2, ceiling=9), schedule=FALLING),
    "row": SparsitySettings(budget=BudgetSettings(kind="row", floor=2), schedule=FALLING),
    "popularity": SparsitySettings(budget=BudgetSettings(kind="popularity", floor=2), schedule=FALLING),
    "random": SparsitySettings(schedule=FALLING, grow=GrowSettings(kind="random", explore=3)),
    "none": SparsitySettings(schedule=FALLING, grow=GrowSettings(kind="none")),
}


@pytest.mark.parametrize("case", FALLS)
@given(
    seed=st.integers(0, 10**6), ties=st.booleans(), count=st.sampled_from([0, 60, 400]), step=st.sampled_from([1, 3, 5])
)
@settings(max_examples=25, deadline=None)
def test_a_number_that_falls_is_exact_and_does_not_depend_on_the_ranks(case, seed, ties, count, step):
    rng = np.random.default_rng(seed)
    rows, config = make_rows(rng, 8, 20, 4, ties=ties), FALLS[case]
    growing = case in ("global", "row", "popularity")
    candidates = make_candidates(rng, 8, 20, count, ties=ties) if growing else None
    gains, start = rng.normal(size=8).astype(np.float32), int(rows.live.sum())
    goal = max(start // 2, 16)
    if goal > start:
        return
    expected = live_after(config.schedule, LiveCounts(start, goal), step, 10)
    one, server = run(rows, [0, 8], candidates, config, gains, step, goal)
    assert one.live.sum() == expected == server.journal[-1]["live"]
    entry = server.journal[-1]
    if start > expected and entry["restored"] and not count and growing:
        assert entry["note"] == "nothing grew: there was no candidate; what was to move came back"
    assert start - expected == entry["dropped"] - entry["grown"] - entry["restored"]
    lengths = np.bincount(rows.slot_rows(), one.live).astype(int)
    before = np.bincount(rows.slot_rows(), rows.live).astype(int)
    floor = config.budget.floor
    assert (lengths >= np.minimum(before, floor)).all()
    if case in ("row", "popularity"):
        exact = before * expected / start
        free = np.minimum(before, floor) < np.floor(exact)
        if (exact >= np.minimum(before, floor)).all():  # no floor is in the way: every row's number is its own share
            assert (np.abs(lengths - exact)[free] < 1).all()
    if case == "none":
        assert entry["note"] is None or (not entry["dropped"] and entry["note"].startswith("nothing was dropped"))
        kept = one.live & (one.columns == rows.columns)
        assert np.array_equal(kept, one.live) and np.array_equal(one.values[kept], rows.values[kept])
    for bounds in ([0, 3, 8], [0, 0, 5, 5, 8]):
        many, _ = run(rows, bounds, candidates, config, gains, step, goal)
        assert np.array_equal(one.columns, many.columns) and one.values.tobytes() == many.values.tobytes()


def test_without_growth_the_globally_weakest_fall():
    offsets = np.array([0, 4, 8])
    values = np.array([1.0, 0.1, 0, 0, 0.5, 0.4, 0.3, 0], np.float32)
    columns = np.array([0, 1, 9, 9, 0, 1, 2, 9], np.int32)
    rows = OwnedRows(0, 2, offsets, values, columns, 9)
    after, server = run(rows, [0, 2], None, FALLS["none"], np.ones(2, np.float32), 5, 3)
    assert after.columns.tolist() == [0, 9, 9, 9, 0, 1, 9, 9]
    assert server.journal[-1]["dropped"] == 2 and server.journal[-1]["grown"] == 0


@given(rows=st.lists(st.integers(0, 30), min_size=1, max_size=40), share=st.floats(0, 1), floor=st.integers(1, 4))
def test_rows_are_cut_in_proportion_to_an_exact_sum(rows, share, floor):
    live = np.array(rows)
    least = np.minimum(live, floor)
    total = int(least.sum() + share * (live - least).sum())
    numbers = row_numbers(np.bincount(live), total, floor).of(live)
    assert numbers.sum() == total and (numbers >= least).all() and (numbers <= live).all()
    order = np.argsort(live, kind="stable")
    assert (np.diff(numbers[order])[np.diff(live[order]) > 0] >= -1).all()  # in proportion, up to the rounding
    same = live[:, None] == live[None]
    assert (np.abs(numbers[:, None] - numbers[None])[same] <= 1).all()


def test_the_largest_remainders_are_rounded_up_first():
    # 7, 5 and 3 cut to 10 of 15: 4.67, 3.33, 2
    assert row_numbers(np.bincount([7, 5, 3]), 10, 1).of(np.array([7, 5, 3])).tolist() == [5, 3, 2]
    # equal remainders: the first rows
    assert row_numbers(np.bincount([5, 5, 5]), 10, 1).of(np.array([5, 5, 5])).tolist() == [4, 3, 3]


def test_an_event_has_its_version_and_ranks_must_agree_on_it():
    server = SparsityServer(SparsitySettings(), 10, 2)
    closed = server.decide([Event(1, 4, "repack", {"chunks_before": 9, "chunks_after": 5})] * 2)[1]
    assert closed.version == server.version == 1
    assert server.journal == [{"version": 1, "step": 4, "kind": "repack", "chunks_before": 9, "chunks_after": 5}]
    with pytest.raises(ProtocolError, match="disagree on the repack of step 5"):
        server.decide([Event(2, 5, "repack", {"chunks_after": 5}), Event(2, 5, "repack", {"chunks_after": 4})])


def test_the_weakest_go_and_the_strongest_come():
    offsets = np.array([0, 4, 8])
    values = np.array([1.0, 0.1, 0, 0, 0.5, 0.4, 0.3, 0], np.float32)
    columns = np.array([0, 1, 9, 9, 0, 1, 2, 9], np.int32)
    rows = OwnedRows(0, 2, offsets, values, columns, 9)
    candidates = Candidates(np.array([0, 0, 1]), np.array([5, 6, 7]), np.array([0.3, 0.9, 0.5], np.float32))
    config = SparsitySettings(schedule=ScheduleSettings(drop_fraction=0.4, drop_decay="constant"))
    after, server = run(rows, [0, 2], candidates, config, np.array([1.0, 4.0], np.float32))
    # 40 % of 5 entries: 0.1 of row 0 and, with √gain 2, 0.3 · 2 of row 1; the largest gradients grow
    assert after.columns.tolist() == [0, 6, 9, 9, 0, 1, 7, 9]
    assert after.values.tolist() == pytest.approx([1.0, 0, 0, 0, 0.5, 0.4, 0, 0])
    assert server.journal[0]["dropped"] == server.journal[0]["grown"] == 2


def test_strongest_dropped_are_restored_where_nothing_can_grow():
    rng = np.random.default_rng(0)
    rows = make_rows(rng, 6, 30, 4, ties=False)
    nothing = Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    after, server = run(rows, [0, 6], nothing, CASES["global"], np.ones(6, np.float32))
    assert np.array_equal(after.columns, rows.columns) and np.array_equal(after.values, rows.values)
    assert server.journal[0]["restored"] == server.journal[0]["dropped"] > 0


@pytest.mark.parametrize("where", ["value", "score"])
def test_nan_is_refused_with_its_row(where):
    rng = np.random.default_rng(0)
    rows, candidates = make_rows(rng, 4, 30, 4, ties=False), make_candidates(rng, 4, 30, 20, ties=False)
    if where == "value":
        rows.values[rows.offsets[2] + np.flatnonzero(rows.live[rows.offsets[2] :])[0]] = np.nan
    else:
        candidates.scores[candidates.rows == 2] = np.nan
    with pytest.raises(NumericError, match="Table item, row 2"):
        run(rows, [0, 4], candidates, CASES["global"], np.ones(4, np.float32))


def test_merge_equals_a_slow_reference_in_any_order():
    rng = np.random.default_rng(4)
    triples = SeenGradients(rng.integers(0, 5, 300), rng.integers(0, 6, 300), rng.normal(size=300).astype(np.float32))
    visited = rng.integers(0, 5, 40)
    visited = np.concatenate([visited, np.arange(5)])
    rows, columns, scores = merge(triples, visited)
    for row, column, score in zip(rows, columns, scores, strict=True):
        same = (triples.rows == row) & (triples.columns == column)
        expected = abs(triples.gradients[same].astype(np.float64).sum()) / (visited == row).sum()
        assert abs(score) == pytest.approx(expected, rel=1e-5)
    order = rng.permutation(300)
    shuffled = SeenGradients(triples.rows[order], triples.columns[order], triples.gradients[order])
    assert merge(shuffled, visited[::-1])[2].tobytes() == scores.tobytes()


def test_server_refuses_what_does_not_fit():
    server = SparsityServer(SparsitySettings(), 10, 2)
    with pytest.raises(ProtocolError, match="1 messages came from 2 ranks"):
        server.decide([Open(1, 5, 0, 10, 5)])
    with pytest.raises(ProtocolError, match="version 1 is next"):
        server.decide([Open(1, 5, 0, 10, 5), Open(2, 5, 3, 10, 5)])
    with pytest.raises(ProtocolError, match="different steps"):
        server.decide([Open(1, 5, 0, 10, 5), Open(1, 6, 3, 10, 5)])


def test_unit_rows_have_length_one_and_keep_their_direction():
    rows = make_rows(np.random.default_rng(0), 5, 20, 4, ties=False)
    before = rows.values.copy()
    rescale_to_unit(rows)
    for r in range(5):
        a, b = rows.offsets[r], rows.offsets[r + 1]
        np.testing.assert_allclose(rows.values[a:b], before[a:b] / np.linalg.norm(before[a:b]), rtol=1e-6)
