from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hse_dist.data import batch as batch_module
from hse_dist.data.batch import make_batch
from hse_dist.data.prepared import HistoryBlock

EMPTY = HistoryBlock(np.zeros(1, np.int64), np.zeros(0, np.int64))


@given(
    histories=st.lists(st.lists(st.integers(0, 40), unique=True, max_size=10), max_size=6),
    negatives=st.integers(0, 50),
    step=st.integers(0, 3),
    marked=st.booleans(),
)
def test_like_the_slow_reference(histories: list[list[int]], negatives: int, step: int, marked: bool) -> None:
    flat = [row for history in histories for row in history]
    block = HistoryBlock(np.cumsum([0, *map(len, histories)]), np.array(flat, np.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "MARKED_ROWS", 10**6 if marked else 0)
        batch = make_batch(block, rows=41, negatives=negatives, seed=3, step=step, rank=1)
    drawn = range(41) if negatives >= 41 else np.random.default_rng([3, step, 1]).integers(0, 41, negatives).tolist()
    candidates = sorted({*flat, *drawn})
    assert batch.candidates.tolist() == candidates
    assert batch.positions.tolist() == [candidates.index(row) for row in flat]
    assert batch.offsets.tolist() == block.offsets.tolist()
    assert batch.candidates.dtype == batch.positions.dtype == batch.offsets.dtype == torch.int64


def test_empty_blocks() -> None:
    assert 0 < len(make_batch(EMPTY, rows=1000, negatives=9, seed=0, step=0, rank=0).candidates) <= 9
    none = make_batch(EMPTY, rows=1000, negatives=0, seed=0, step=0, rank=0)
    assert [len(none.candidates), len(none.offsets), len(none.positions)] == [0, 1, 0]


def test_negatives_follow_from_seed_step_and_rank_and_are_uniform() -> None:
    def draw(seed: int, step: int, rank: int) -> list[int]:
        return make_batch(EMPTY, rows=10**6, negatives=50, seed=seed, step=step, rank=rank).candidates.tolist()

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert draw(0, 0, 0) == draw(0, 0, 0) and len({tuple(draw(*key)) for key in keys}) == 4
    marks = np.zeros(100)
    for step in range(2000):
        marks[make_batch(EMPTY, rows=100, negatives=10, seed=0, step=step, rank=0).candidates.numpy()] += 1
    assert abs(marks / 2000 - (1 - 0.99**10)).max() < 0.035


def test_the_batch_owns_its_memory() -> None:
    block = HistoryBlock(np.array([0, 2]), np.array([4, 7]))
    batch = make_batch(block, rows=8, negatives=100, seed=0, step=0, rank=0)
    block.rows[:] = 0
    assert batch.positions.tolist() == [4, 7]
