"""Patterns of the local inverse, against definitions in dense float64."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hse_dist.data.prepared import HistoryBlock
from hse_dist.sparsity.start import patterns
from hse_dist.sparsity.start.gram import CoOccurrence, open_co_occurrence, write_co_occurrence
from hse_dist.sparsity.start.local_inverse import Patterns, Regularization, find_patterns, join_patterns
from hse_dist.sparsity.start.patterns import greedy, grow, two_hop

LAMBDA = Regularization(5.0, dropout=0.2)


@pytest.fixture
def pairs(histories, tmp_path: Path) -> CoOccurrence:
    x = histories.matrix("train")
    write_co_occurrence([HistoryBlock(x.indptr, x.indices)], x.shape[1], tmp_path / "gram")
    return open_co_occurrence(tmp_path / "gram")


@pytest.fixture
def gram(histories) -> np.ndarray:
    x = histories.matrix("train").toarray().astype(np.float64)
    gram = x.T @ x
    np.fill_diagonal(gram, LAMBDA.diagonal(x.sum(0).astype(np.int64)))
    return gram


def listed(found: Patterns) -> list[list[int]]:
    return [found.columns[begin:end].tolist() for begin, end in pairwise(found.offsets)]


def conditional(pairs: CoOccurrence, size: int) -> Patterns:
    return find_patterns(pairs, 0, 50, diagonal=LAMBDA.diagonal(pairs.counts), size=size)


def strongest(weights: np.ndarray, count: int) -> list[int]:
    order = np.argsort(-weights, kind="stable")[:count]
    return sorted(order[weights[order] > 0].tolist())


def slow_two_hop(gram: np.ndarray, size: int, hops: int) -> list[list[int]]:
    """By dense matrices: the conditional weights, those of the strongest neighbours, and paths over these."""
    weights = np.tril(gram, -1) / np.diag(gram)
    near, own = np.zeros_like(weights), np.zeros_like(weights)
    for i, row in enumerate(weights):
        for kept, count in ((near, hops), (own, size - 1)):
            members = strongest(row, count)
            kept[i, members] = row[members]
    return [[*strongest(row, size - 1), i] for i, row in enumerate(own + near @ own)]


@pytest.mark.parametrize("products", [1, 2**20])
def test_two_hops_are_the_strongest_of_paths_over_neighbours(
    pairs: CoOccurrence, gram: np.ndarray, monkeypatch: pytest.MonkeyPatch, products: int
) -> None:
    monkeypatch.setattr(patterns, "PRODUCTS", products)
    found: list[list[int]] = []
    for first, last in pairwise([0, 1, 17, 50]):
        part = two_hop(pairs, first, last, diagonal=LAMBDA.diagonal(pairs.counts), size=12)
        assert part.first == first
        found += listed(part)
    assert found == slow_two_hop(gram, 12, patterns.HOPS)
    assert found != listed(conditional(pairs, 12))


def test_two_hops_of_one_member_are_the_items_themselves(pairs: CoOccurrence) -> None:
    assert listed(two_hop(pairs, 3, 6, diagonal=LAMBDA.diagonal(pairs.counts), size=1)) == [[3], [4], [5]]


def variance(gram: np.ndarray, item: int, given: list[int]) -> float:
    """Of the item, given others: 1 / (G[S, S]⁻¹)_ii."""
    members = [*given, item]
    return 1 / float(np.linalg.inv(gram[np.ix_(members, members)])[-1, -1])


def slow_greedy(gram: np.ndarray, item: int, pool: list[int], count: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(min(count, len(pool))):
        left = [j for j in pool if j not in chosen]
        chosen.append(min(left, key=lambda j: variance(gram, item, [*chosen, j])))
    return sorted(chosen)


def test_greedy_members_lower_the_conditional_variance_most(pairs: CoOccurrence, gram: np.ndarray) -> None:
    pool = conditional(pairs, 14)
    whole = listed(greedy(pairs, pool, LAMBDA, 5))
    for item, (own, candidates) in enumerate(zip(whole, listed(pool), strict=True)):
        assert own == [*slow_greedy(gram, item, candidates[:-1], 4), item]
    assert whole != listed(conditional(pairs, 5))
    assert listed(greedy(pairs, pool.part(9, 30), LAMBDA, 5)) == whole[9:30]


def test_the_first_of_equal_members_is_chosen_and_none_of_no_use() -> None:
    gram = np.array([[4.0, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [2, 2, 0, 9]])
    assert patterns._greedy_members(gram, 1).tolist() == [0]
    assert patterns._greedy_members(gram, 3).tolist() == [0, 1]


def test_patterns_grow_by_the_members_with_the_largest_gradient(pairs: CoOccurrence, gram: np.ndarray) -> None:
    rng, pool = np.random.default_rng(0), conditional(pairs, 20)
    kept = rng.random(len(pool.columns)) < 0.3
    rows = np.repeat(np.arange(50), np.diff(pool.offsets))
    left = join_patterns(rows[kept], pool.columns[kept], 0, 50)
    grown = listed(grow(pairs, left, pool, LAMBDA))
    for item, (own, before, candidates) in enumerate(zip(grown, listed(left), listed(pool), strict=True)):
        y = np.linalg.solve(gram[np.ix_(before, before)], np.eye(len(before))[-1])
        others = [j for j in candidates if j not in before]
        gradient = (gram[np.ix_(others, before)] @ y) ** 2 / np.diag(gram)[others]
        added = np.array(others, int)[strongest(gradient, len(before))].tolist()
        assert own == [*sorted([*before[:-1], *added]), item]
    assert listed(grow(pairs, left.part(7, 21), pool.part(7, 21), LAMBDA)) == grown[7:21]
