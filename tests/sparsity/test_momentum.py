"""What is remembered from rewire to rewire, against a dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hse_dist.sparsity.momentum import Momenta, carry


def make(rng: np.random.Generator, count: int) -> Momenta:
    positions = np.sort(rng.permutation(5 * 12)[:count])
    return Momenta(positions // 12, positions % 12, rng.integers(-4, 5, count).astype(np.float32))


@given(seed=st.integers(0, 2**32 - 1), old=st.integers(0, 60), new=st.integers(0, 60), explore=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_sums_decay_and_each_row_keeps_its_strongest(seed: int, old: int, new: int, explore: int) -> None:
    rng = np.random.default_rng(seed)
    before, seen = make(rng, old), make(rng, new)
    shuffled = rng.permutation(old)
    found = carry(Momenta(before.rows[shuffled], before.columns[shuffled], before.values[shuffled]), seen, 0.5, explore)
    expected: dict[tuple[int, int], float] = {}
    for part, factor in ((before, 0.5), (seen, 1.0)):
        for row, column, value in zip(part.rows.tolist(), part.columns.tolist(), part.values.tolist(), strict=True):
            expected[row, column] = expected.get((row, column), 0.0) + factor * value
    kept = []
    for row in range(5):
        mine = sorted((-abs(value), column) for (r, column), value in expected.items() if r == row)[:explore]
        kept += [(row, column, expected[row, column]) for _, column in sorted(mine, key=lambda one: one[1])]
    assert list(zip(found.rows.tolist(), found.columns.tolist(), found.values.tolist(), strict=True)) == kept
