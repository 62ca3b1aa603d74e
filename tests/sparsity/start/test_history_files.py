"""Histories as flat files, and the sample of very long ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hse_dist.data.prepared import HistoryBlock
from hse_dist.errors import ResourceError
from hse_dist.sparsity.start import history_files
from hse_dist.sparsity.start.gram import Counting, open_co_occurrence, write_co_occurrence
from hse_dist.sparsity.start.history_files import Sampling, open_histories, sample, write_histories


@pytest.mark.parametrize("plain", [False, True])
def test_both_matrices_are_written(histories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    monkeypatch.setattr(history_files, "OWNERS", 37)
    if plain:
        monkeypatch.setattr(history_files, "library", lambda: None)
    write_histories(histories.scan("train"), 50, tmp_path / "files", Sampling())
    files, x = open_histories(tmp_path / "files"), histories.matrix("train")
    for lists, matrix in [(files.by_user, x), (files.by_item, x.T.tocsr())]:
        matrix.sort_indices()
        np.testing.assert_array_equal(lists.offsets, matrix.indptr)
        np.testing.assert_array_equal(lists.members, matrix.indices)
    lower = np.tril((x.T @ x).toarray(), -1)
    np.testing.assert_array_equal(files.costs, lower.sum(1))
    assert files.weights is None and files.sampled == 0


def test_pairs_of_sampled_histories_are_right_in_expectation() -> None:
    seeds, length, longest = 3000, 12, 5
    block = HistoryBlock(np.array([0, 3, 3 + length]), np.concatenate([np.arange(3), np.arange(length) * 7]))
    totals = np.zeros((length, length))
    for seed in range(seeds):
        drawn, weights, sampled = sample(block, np.array([1, 3]), 40, Sampling(longest, seed))
        assert sampled == 1 and weights[0] == 1 and drawn.offsets.tolist() == [0, 3, 3 + longest]
        inside = drawn.rows[3:] // 7
        totals[np.ix_(inside, inside)] += weights[1]
    # exact weight 3 · 12 · 11 / (5 · 4) = 19.8; a pair is drawn with p = 20 / 132: standard error 0.13
    means = totals[np.triu_indices(length, 1)] / seeds
    assert np.abs(means - 3).max() < 5 * 19.8 * np.sqrt(20 / 132 * (1 - 20 / 132) / seeds)
    assert abs(means.mean() - 3) < 0.01  # a fixed number of pairs is drawn: only the rounding of weights varies


def test_a_sample_depends_on_seed_and_user_alone(histories, tmp_path: Path) -> None:
    def written(name: str, users: int, seed: int = 0) -> dict[str, bytes]:
        write_histories(histories.scan("train", users), 50, tmp_path / name, Sampling(6, seed))
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    assert written("a", 7) == written("b", 400) != written("c", 400, seed=1)
    assert open_histories(tmp_path / "a").sampled == np.count_nonzero(histories.matrix("train").sum(1) > 6)


def test_counts_of_single_items_are_never_sampled(histories, tmp_path: Path) -> None:
    counting = Counting(sampling=Sampling(6))
    write_co_occurrence(histories.scan("train"), 50, tmp_path / "gram", counting)
    pairs = open_co_occurrence(tmp_path / "gram")
    np.testing.assert_array_equal(pairs.counts, histories.counts())
    assert pairs.sampled > 0


def test_weights_beyond_the_counts_are_an_error(tmp_path: Path) -> None:
    block = HistoryBlock(np.array([0, 100_000]), np.arange(100_000))
    with pytest.raises(ResourceError, match="max_history"):
        write_histories([block], 100_000, tmp_path / "files", Sampling(2))


def test_histories_that_weigh_too_much_by_themselves_are_an_error(tmp_path: Path) -> None:
    block = HistoryBlock(np.array([0, 2, 4, 6]), np.array([0, 1] * 3))
    with pytest.raises(ResourceError, match=r"3221225469.*history_power"):
        write_histories([block], 2, tmp_path / "files", Sampling(), np.full(3, 2**30 - 1))
