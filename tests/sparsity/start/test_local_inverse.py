"""The local-inverse start, against a slow solve an item and against the exact inverse."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as ss

from hse_dist.data.prepared import HistoryBlock
from hse_dist.errors import NumericError
from hse_dist.sparsity.start import local_inverse
from hse_dist.sparsity.start.gram import CoOccurrence, open_co_occurrence, write_co_occurrence
from hse_dist.sparsity.start.local_inverse import Guard, Patterns, Regularization, find_patterns, join_patterns, solve
from hse_dist.sparsity.start.triples import Triples


def pairs_of(x: ss.csr_matrix, folder: Path) -> CoOccurrence:
    write_co_occurrence([HistoryBlock(x.indptr, x.indices)], x.shape[1], folder / "gram")
    return open_co_occurrence(folder / "gram")


def solve_range(
    pairs: CoOccurrence, first: int, last: int, regularization: Regularization, size: int, guard: Guard | None = None
) -> Triples:
    diagonal = regularization.diagonal(pairs.counts)
    return solve(pairs, find_patterns(pairs, first, last, diagonal=diagonal, size=size), regularization, guard)


def factor(pairs: CoOccurrence, bounds: list[int], constant: float, size: int, dropout: float = 0.0) -> np.ndarray:
    """L as a dense float64 matrix, from ranges of items."""
    items = len(pairs.counts)
    lower = np.zeros((items, items))
    for first, last in pairwise(bounds):
        part = solve_range(pairs, first, last, Regularization(constant, dropout), size)
        assert part.values.dtype == np.float32
        lower[part.columns, part.rows] = part.values
    return lower


def slow_row(gram: np.ndarray, pattern: list[int]) -> np.ndarray:
    """The factor's row on a pattern by a general solver."""
    solution = np.linalg.solve(gram[np.ix_(pattern, pattern)], np.eye(len(pattern))[-1])
    return solution / np.sqrt(solution[-1])


def slow_factor(gram: np.ndarray, size: int) -> np.ndarray:
    """The same from the definition: pattern by a full sort, solution by a general solver."""
    lower = np.zeros_like(gram)
    for i in range(len(gram)):
        weight = gram[i, :i] / np.diag(gram)[:i]
        earlier = np.argsort(-weight, kind="stable")[: size - 1]
        pattern = [*sorted(earlier[weight[earlier] > 0]), i]
        lower[i, pattern] = slow_row(gram, pattern)
    return lower


def dense_gram(x: ss.csr_matrix, regularization: float, dropout: float = 0.0) -> np.ndarray:
    """The expected Gram matrix of histories that lose a share of their entries, each kept one scaled up, plus λ."""
    dense = x.toarray().astype(np.float64)
    counts = dense.sum(0)
    return dense.T @ dense + np.diag(regularization + dropout / (1 - dropout) * counts)


@pytest.mark.parametrize("size", [1, 2, 9, 50])
def test_rows_equal_a_slow_solve(histories, tmp_path: Path, size: int) -> None:
    x = histories.matrix("train")
    lower = factor(pairs_of(x, tmp_path), [0, 50], 5.0, size)
    np.testing.assert_allclose(lower, slow_factor(dense_gram(x, 5.0), size), rtol=1e-5, atol=1e-7)
    assert (np.count_nonzero(lower, axis=1) <= size).all()


def test_dropout_adds_a_share_of_the_counts(histories, tmp_path: Path) -> None:
    x = histories.matrix("train")
    lower = factor(pairs_of(x, tmp_path), [0, 50], 5.0, size=9, dropout=0.25)
    np.testing.assert_allclose(lower, slow_factor(dense_gram(x, 5.0, dropout=0.25), 9), rtol=1e-5, atol=1e-7)


def test_any_pattern_gets_its_best_values(histories, tmp_path: Path) -> None:
    x, rng = histories.matrix("train"), np.random.default_rng(3)
    pairs, gram = pairs_of(x, tmp_path), dense_gram(x, 5.0)
    items, members = np.nonzero(np.tril(rng.random((50, 50)) < 0.2))
    shuffled = rng.permutation(len(items))
    found = np.zeros((50, 50))
    for first, last in pairwise([0, 9, 10, 50]):
        mine = shuffled[(items[shuffled] >= first) & (items[shuffled] < last)]
        patterns = join_patterns(items[mine], members[mine], first, last)
        part = solve(pairs, patterns, Regularization(5.0))
        found[part.columns, part.rows] = part.values
    for i in range(50):
        pattern = [*members[(items == i) & (members < i)], i]
        np.testing.assert_allclose(found[i, pattern], slow_row(gram, pattern), rtol=1e-5, atol=1e-7)
        assert set(np.flatnonzero(found[i])) <= set(pattern)
    # what makes it the best factor of the pattern: the diagonal of L G Lᵀ is 1
    np.testing.assert_allclose(np.einsum("ij,jk,ik->i", found, gram, found), 1, rtol=1e-5)


def test_patterns_without_others_are_the_items_themselves() -> None:
    nothing = np.empty(0, np.int64)
    patterns = join_patterns(nothing, nothing, 4, 7)
    assert isinstance(patterns, Patterns) and patterns.first == 4
    np.testing.assert_array_equal(patterns.offsets, [0, 1, 2, 3])
    np.testing.assert_array_equal(patterns.columns, [4, 5, 6])


def test_the_full_pattern_gives_the_inverse(histories, tmp_path: Path) -> None:
    x = histories.matrix("train")[:, :12]
    gram = (x.T @ x).toarray()
    assert gram.min() > 0  # every item shares users with every other, so the patterns are full
    lower = factor(pairs_of(x, tmp_path), [0, 12], 5.0, size=12)
    inverse = np.linalg.inv(gram + 5.0 * np.eye(12))
    np.testing.assert_allclose(lower.T @ lower, inverse, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shared", [1, 700, 10**9])
def test_ranges_and_batches_do_not_change_a_bit(
    histories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: int
) -> None:
    pairs = pairs_of(histories.matrix("train"), tmp_path)
    whole = factor(pairs, [0, 50], 5.0, size=12)
    monkeypatch.setattr(local_inverse, "SHARED", shared)
    np.testing.assert_array_equal(factor(pairs, [0, 1, 1, 17, 18, 43, 50], 5.0, size=12), whole)


def test_a_singular_block_names_row_and_setting(tmp_path: Path) -> None:
    twins = ss.csr_matrix(np.ones((4, 2), np.float32))
    with pytest.raises(NumericError, match=r"item row 1.*sparsity\.local_inverse\.regularization = 1e-300"):
        solve_range(pairs_of(twins, tmp_path), 0, 2, Regularization(1e-300), size=8)


def test_the_guard_raises_diagonals_until_it_succeeds_and_counts(tmp_path: Path) -> None:
    # what a sample may give: items 0 and 1 share more users than either has, which no regularization of 1 mends
    counts, shared = np.array([10, 10, 4]), np.array([60, 2], np.int32)
    pairs = CoOccurrence(counts, np.array([0, 0, 1, 2]), np.array([0, 0], np.int32), shared, sampled=1)
    with pytest.raises(NumericError):
        solve_range(pairs, 0, 3, Regularization(1.0), size=3)
    guard = Guard()
    triples = solve_range(pairs, 0, 3, Regularization(1.0), size=3, guard=guard)
    assert guard.shifted == 1 and np.isfinite(triples.values).all()
    lower = np.zeros((3, 3))
    lower[triples.columns, triples.rows] = triples.values
    assert lower[2, 0] == pytest.approx(lower[2, 2] * -2 / 11)  # an item that needed no guard is as it was
    assert lower[1, 1] > 0 > lower[1, 0]
