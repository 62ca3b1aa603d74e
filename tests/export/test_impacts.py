"""Answers from the inverted index are those of every other way, bit by bit; early ones are equal without kernels."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from hse_dist.errors import ConfigError
from hse_dist.export.choice import ALL, Choice
from hse_dist.export.format import Export
from hse_dist.export.impacts import Impacts
from hse_dist.export.postings import BLOCK, MOST, Postings, build, impacts_of, pays
from hse_dist.export.recommender import Recommender
from hse_dist.export.search import Search
from hse_dist.native.library import library

compiled = pytest.mark.skipif(library() is None, reason="the compiled kernels were not built")


def table(seed: int, items: int, dims: int, kind: str) -> tuple[sp.csr_matrix, np.ndarray]:
    """Rows of very different lengths and sizes; `whole`: small numbers, so that ties are many and sums exact."""
    rng = np.random.default_rng(seed)
    if kind == "whole":
        dense = rng.integers(-2, 3, (items, dims)).astype(np.float64)
    else:
        dense = rng.standard_normal((items, dims)) * 10.0 ** rng.integers(-4, 5, (items, dims))
    if kind == "tiny":
        dense *= 1e-38
    dense *= rng.random((items, dims)) < rng.choice([0.02, 0.2, 0.7])
    matrix = sp.csr_matrix(dense.astype(np.float32))
    matrix.sort_indices()
    return matrix, rng.choice(np.array([-1.0, 0.3, 1.0, 1e-6], np.float32), items)


def user_of(matrix: sp.csr_matrix, history: np.ndarray) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    histories = sp.csr_matrix((np.ones(len(history), np.float32), history, [0, len(history)]), (1, matrix.shape[0]))
    user = histories @ matrix
    user.sort_indices()
    return user, histories


def same(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


shapes = {
    "seed": st.integers(0, 10**6),
    "items": st.integers(1, 400),
    "dims": st.integers(1, 40),
    "kind": st.sampled_from(["whole", "wide", "tiny"]),
}


@compiled
@settings(deadline=None)
@given(**shapes)
def test_kernel_and_numpy_build_the_same_index(seed, items, dims, kind) -> None:
    matrix, gains = table(seed, items, dims, kind)
    one, other = build(matrix, gains), build(matrix, gains, kernels=False)
    for name in Postings.__dataclass_fields__:
        same(getattr(one, name), getattr(other, name))
    owner = np.repeat(np.arange(items), np.diff(matrix.indptr))
    column = np.repeat(np.arange(dims), np.diff(one.ends))
    found = sp.csr_matrix((impacts_of(one.postings) + 0.5, (one.postings % 2**16, column)), matrix.shape)
    held = (found.toarray() - 0.5)[owner, matrix.indices] * one.scales[matrix.indices] / MOST
    true = matrix.data.astype(np.float64) * gains[owner]
    assert (np.abs(held - true) <= one.scales[matrix.indices] * (0.51 / MOST) + 1e-44).all()
    assert one.block_ends[-1] == len(one.tops) == (-(-np.diff(one.ends) // BLOCK)).sum()


@compiled
@settings(deadline=None, max_examples=200)
@given(**shapes, k=st.integers(1, 60), blocked=st.floats(0, 1))
def test_exact_answers_are_those_of_the_plain_path(seed, items, dims, kind, k, blocked) -> None:
    matrix, gains = table(seed, items, dims, kind)
    rng, k = np.random.default_rng(seed), min(k, items)
    history = np.unique(rng.integers(0, items, rng.integers(1, 20)))
    mask = (rng.random(items) < blocked).astype(np.uint8) if seed % 2 else None
    user, histories = user_of(matrix, history)
    rows, scores, work = Impacts(matrix, gains, build(matrix, gains)).top(user, history, k, mask)
    plain = Search(matrix, gains, kernels=False)
    expected, best = plain.top(user, histories, k, Choice(blocked=mask))
    same(rows, expected[0])
    same(scores, best[0])
    assert work.rounds >= 1
    if kind == "whole":  # exact in float32, so what float64 says
        brute = gains.astype(np.float64) * (matrix.toarray().astype(np.float64) @ user.toarray()[0])
        able = [j for j in range(items) if j not in history and not (mask is not None and mask[j])]
        order = sorted(able, key=lambda j: (-np.float32(brute[j]), j))[:k]
        assert rows[rows >= 0].tolist() == order


@compiled
def test_several_ranges_and_less_than_all_is_read() -> None:
    """Two and a half ranges of rows; strong entries are few, so most postings need not be read."""
    rng, items, dims, live = np.random.default_rng(3), 160_000, 64, 8
    columns = np.sort(np.argsort(rng.random((items, dims)), axis=1)[:, :live], axis=1)
    values = (rng.standard_normal((items, live)) * 0.05 ** rng.random((items, live))).astype(np.float32)
    matrix = sp.csr_matrix((values.ravel(), columns.ravel().astype(np.int32), np.arange(0, items * live + 1, live)))
    gains = np.ones(items, np.float32)
    one, other = build(matrix, gains), build(matrix, gains, kernels=False)
    for name in Postings.__dataclass_fields__:
        same(getattr(one, name), getattr(other, name))
    impacts, plain = Impacts(matrix, gains, one), Search(matrix, gains, 1)
    slow = Impacts(matrix, gains, one, kernels=False)
    for k in (1, 50):
        history = np.unique(rng.integers(0, items, 12))
        user, histories = user_of(matrix, history)
        rows, scores, work = impacts.top(user, history, k)
        (expected,), (best,) = plain._sweep.top(user, histories, k, ALL.blocked)
        same(rows, expected)
        same(scores, best)
        total = plain._sweep.entries(user)
        assert work.scored < items / 20 and work.postings < 0.8 * total
        for most in (0, total // 20, 2 * total):
            early, slowly = impacts.top(user, history, k, None, most), slow.top(user, history, k, None, most)
            same(early[0], slowly[0])
            same(early[1], slowly[1])
            assert early[2] == slowly[2] and early[2].postings <= most
        same(early[0], rows)  # all was read


@compiled
@settings(deadline=None)
@given(**shapes, k=st.integers(1, 30), most=st.integers(0, 3000))
def test_early_answers_are_the_same_without_kernels(seed, items, dims, kind, k, most) -> None:
    matrix, gains = table(seed, items, dims, kind)
    rng, k = np.random.default_rng(seed), min(k, items)
    history = np.unique(rng.integers(0, items, rng.integers(1, 20)))
    mask = (rng.random(items) < 0.3).astype(np.uint8) if seed % 2 else None
    user, _ = user_of(matrix, history)
    index = build(matrix, gains)
    (rows, scores, work), slow = (
        Impacts(matrix, gains, index, kernels=kernels).top(user, history, k, mask, most) for kernels in (True, False)
    )
    same(rows, slow[0])
    same(scores, slow[1])
    assert work == slow[2] and work.postings <= most


def recommender_of(early: int | None = None, kernels: bool = True) -> Recommender:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((5000, 8)) * (rng.random((5000, 8)) < 0.6)
    matrix = sp.csr_matrix(dense.astype(np.float32))
    export = Export(pa.array(np.arange(5000)), matrix, np.ones(5000, np.float32), {})
    return Recommender(export, 1, kernels=kernels, early=early)


@compiled
def test_the_index_is_built_when_it_pays_and_changes_nothing() -> None:
    recommender, plain = recommender_of(), recommender_of(kernels=False)
    built = None
    for turn in range(120):
        options = {"deny": [turn]} if turn % 2 else {"seen": True}
        assert recommender.recommend([turn, 7], 9, **options) == plain.recommend([turn, 7], 9, **options)
        if recommender._search._index is not None and built is None:
            built = turn
    assert built is not None and built > 3
    ready = recommender_of()
    ready.prepare()
    assert ready._search._index is not None and ready.recommend([3], 5) == plain.recommend([3], 5)
    assert ready.recommend_batch([[1], [2, 3], []], 5) == plain.recommend_batch([[1], [2, 3], []], 5)


@pytest.mark.parametrize("kernels", [True, False])
def test_early_answers_have_right_scores(kernels: bool) -> None:
    exact = dict(recommender_of().recommend([5, 6], 4998))
    early = recommender_of(early=400, kernels=kernels)
    early.prepare()
    answer = early.recommend([5, 6], 20)
    assert len(answer) == 20 and all(exact[item] == score for item, score in answer)
    assert recommender_of(early=10**9, kernels=kernels).recommend([5, 6], 20) == recommender_of().recommend([5, 6], 20)
    with pytest.raises(ConfigError, match="early = -1"):
        recommender_of(early=-1)


@compiled
def test_threads_ask_one_index() -> None:
    recommender = recommender_of()
    recommender.prepare()
    expected = [recommender.recommend([j, j + 1], 10) for j in range(40)]
    wrong = []

    def ask() -> None:
        for j in range(40):
            if recommender.recommend([j, j + 1], 10) != expected[j]:
                wrong.append(j)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_a_table_of_short_lists_has_no_index() -> None:
    matrix = sp.csr_matrix(np.eye(50, dtype=np.float32))
    assert not pays(matrix)
    assert build(matrix, np.ones(50, np.float32), kernels=False).ends.tolist() == list(range(51))
