"""From settings to the co-occurrence, and the ranges of items that tasks solve."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as ss

from hse_dist.config import LocalInverseSettings
from hse_dist.sparsity.start.gram import CoOccurrence, open_co_occurrence
from hse_dist.sparsity.start.solving import count_pairs, solve_bounds
from hse_dist.sparsity.start.weights import UNIT


def counted(histories, folder: Path, **own: object) -> CoOccurrence:
    sampled = count_pairs(histories, LocalInverseSettings(entries=50, **own), folder)
    pairs = open_co_occurrence(folder)
    assert pairs.sampled == sampled
    return pairs


def slow_weights(lengths: np.ndarray, power: float) -> np.ndarray:
    shares = np.maximum(lengths, 1) ** -power
    return np.rint(UNIT * np.maximum(lengths, 1).sum() / (shares @ np.maximum(lengths, 1)) * shares).astype(np.int64)


@pytest.mark.parametrize("power", [0.0, 0.25, 1.0])
def test_histories_count_by_their_length(histories, tmp_path: Path, power: float) -> None:
    x = histories.matrix("train").toarray().astype(np.int64)
    weights = slow_weights(x.sum(1), power) if power else np.ones(len(x), np.int64)
    pairs = counted(histories, tmp_path / "gram", history_power=power)
    gram = (x.T * weights) @ x
    np.testing.assert_array_equal(pairs.counts, np.diag(gram))
    triangle = ss.csr_array((pairs.shared, pairs.columns, pairs.offsets), shape=gram.shape)
    np.testing.assert_array_equal(triangle.toarray(), np.tril(gram, -1))


def test_a_sampled_history_counts_by_its_whole_length(histories, tmp_path: Path) -> None:
    x, longest, draws = histories.matrix("train"), 8, 20
    lengths = np.diff(x.indptr)
    dense = x.toarray().astype(np.int64)
    gram = (dense.T * slow_weights(lengths, 0.5)) @ dense
    totals = np.zeros(gram.shape)
    for seed in range(draws):
        own = {"history_power": 0.5, "max_history": longest, "sample_seed": seed}
        pairs = counted(histories, tmp_path / str(seed), **own)
        assert pairs.sampled == np.count_nonzero(lengths > longest) > 50
        np.testing.assert_array_equal(pairs.counts, np.diag(gram))
        totals += ss.csr_array((pairs.shared, pairs.columns, pairs.offsets), shape=gram.shape)
    expected = np.tril(gram, -1)
    # of all pairs a fixed number is drawn of each history: only the rounding of weights varies
    assert totals.sum() / draws == pytest.approx(expected.sum(), rel=1e-3)
    strong = expected > np.quantile(expected[expected > 0], 0.9)
    np.testing.assert_allclose((totals / draws)[strong], expected[strong], rtol=0.2)


def test_ranges_to_solve_fit_into_the_memory() -> None:
    offsets = np.cumsum([0, *range(100)])
    bounds = solve_bounds(offsets, 8, 20_000, 3)
    assert bounds[0] == 0 and bounds[-1] == 100 and bounds == sorted(set(bounds))
    sizes = [48 * (offsets[b] - offsets[a]) + 8 * 80 * (b - a) for a, b in pairwise(bounds)]
    assert len(sizes) > 3 and max(sizes) <= 20_000 + 48 * 99 + 640
    assert len(solve_bounds(offsets, 8, 10**9, 3)) == 4
