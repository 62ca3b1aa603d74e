"""Which items come back, and why: held to the formula in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from hse_dist.export.format import Export
from hse_dist.export.recommender import Recommender

ITEMS, DIMS = 40, 24


def export_of(seed: int, user_entries: int | None = None, ids: Any = None) -> Export:
    """Whole numbers, so that every sum is exact and ties are many."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(-2, 3, (ITEMS, DIMS)) * (rng.random((ITEMS, DIMS)) < 0.3)
    gains = rng.choice(np.array([-1.0, 0.5, 1.0], np.float32), ITEMS)
    matrix = sp.csr_matrix(dense.astype(np.float32))
    names = pa.array(range(100, 100 + ITEMS)) if ids is None else ids
    return Export(names, matrix, gains, {"user_entries": user_entries})


def slow(export: Export, history: set[int], k: int, seen: bool, allowed: set[int]) -> list[tuple[int, float]]:
    if not history:
        return []
    dense = export.matrix.toarray().astype(np.float64)
    u = dense[sorted(history)].sum(0)
    count = export.manifest["user_entries"]
    if count is not None:
        kept = sorted(range(DIMS), key=lambda c: (-abs(u[c]), c))[:count]
        u = np.where(np.isin(np.arange(DIMS), kept), u, 0.0)
    scores = export.gains * (dense @ u)
    for j in history:
        scores[j] -= export.gains[j] * (dense[j] @ dense[j])
    able = allowed if seen else allowed - history
    return [(100 + j, float(scores[j])) for j in sorted(able, key=lambda j: (-scores[j], j))[:k]]


some = st.lists(st.integers(0, ITEMS + 5), max_size=ITEMS)
lists = st.one_of(st.none(), some, st.just(list(range(ITEMS))))


@settings(deadline=None)
@given(
    seed=st.integers(0, 30),
    histories=st.lists(some, max_size=4),
    k=st.integers(1, ITEMS + 3),
    seen=st.booleans(),
    allow=lists,
    deny=lists,
    user_entries=st.sampled_from([None, 3]),
    kernels=st.booleans(),
)
def test_filters_against_the_formula(seed, histories, k, seen, allow, deny, user_entries, kernels) -> None:
    export = export_of(seed, user_entries)
    recommender = Recommender(export, 1, kernels=kernels)
    options = {name: None if rows is None else [100 + j for j in rows] for name, rows in
               (("allow", allow), ("deny", deny))}  # fmt: skip
    allowed = set(range(ITEMS)) & set(range(ITEMS) if allow is None else allow) - set(deny or ())
    asked = [[100 + j for j in history] for history in histories]
    answers = recommender.recommend_batch(asked, k, seen=seen, **options)
    for history, answer in zip(histories, answers, strict=True):
        known = {j for j in history if j < ITEMS}
        assert list(answer) == slow(export, known, k, seen, allowed)
        assert answer.unknown == [100 + j for j in history if j >= ITEMS] and answer.reasons is None
    for history, answer in zip(asked, answers, strict=True):
        assert recommender.recommend(history, k, seen=seen, **options) == answer


@pytest.mark.parametrize("few", [1, 10**6])
def test_an_allow_list_is_answered_alone_or_by_a_mask(monkeypatch, few: int) -> None:
    monkeypatch.setattr("hse_dist.export.choice.FEW", few)
    for seed in range(5):
        export = export_of(seed)
        for kernels in (True, False):
            answer = Recommender(export, 1, kernels=kernels).recommend([103, 107], 9, allow=["x", 104, 103, None, 120])
            assert list(answer) == slow(export, {3, 7}, 9, False, {3, 4, 20})


@settings(deadline=None)
@given(
    seed=st.integers(0, 30),
    history=st.sets(st.integers(0, ITEMS - 1), min_size=1, max_size=8),
    seen=st.booleans(),
    user_entries=st.sampled_from([None, 3]),
)
def test_reasons_add_up_and_name_who_gave_them(seed, history, seen, user_entries) -> None:
    export = export_of(seed, user_entries)
    dense = export.matrix.toarray()
    answer = Recommender(export, 1).recommend([100 + j for j in history], 6, seen=seen, explain=True)
    assert answer.reasons is not None and len(answer.reasons) == len(answer)
    for (item, score), reasons in zip(answer, answer.reasons, strict=True):
        row = item - 100
        assert sum(reason.contribution for reason in reasons) == score
        sizes = [abs(reason.contribution) for reason in reasons]
        assert sizes == sorted(sizes, reverse=True) and 0 not in sizes
        assert len({reason.column for reason in reasons}) == len(reasons)
        for reason in reasons:
            assert dense[row, reason.column] != 0
            givers = {100 + j for j in history if dense[j, reason.column] != 0 and j != row}
            assert set(reason.items) == givers
            given = [
                dense[i - 100, reason.column] * dense[row, reason.column] * export.gains[row] for i in reason.items
            ]
            assert given == sorted(given, reverse=True)
            if user_entries is None:
                assert reason.contribution == sum(given)


def test_nobody_and_nothing() -> None:
    recommender = Recommender(export_of(0, ids=pa.array([f"i{j}" for j in range(ITEMS)])))
    assert recommender.recommend_batch([], 3) == []
    for options in ({"allow": []}, {"allow": ["?"]}, {"deny": recommender.item_ids.to_pylist()}):
        answer = recommender.recommend(["i1", "?"], 3, seen=True, explain=True, **options)
        assert (answer.items, answer.scores, answer.unknown, answer.reasons) == ([], [], ["?"], [])
