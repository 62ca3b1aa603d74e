"""Reasons name those items of the history that add most, and no more than were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from hse_dist import Recommender
from tests.serve.serving import ITEMS, write


@pytest.mark.parametrize("most", [None, 1, 3, 1000])
@pytest.mark.parametrize("seen", [False, True])
def test_a_reason_names_those_that_add_most(tmp_path, most, seen):
    recommender = Recommender.load(write(tmp_path / "e"), 1)
    matrix, gains, ids = recommender._matrix.toarray(), recommender._gains, recommender.item_ids.to_pylist()
    history = list(range(0, ITEMS, 2))
    answer = recommender.recommend([ids[j] for j in history], 30, seen=seen, explain=True, reason_items=most)
    cut, negative = 0, 0
    for item, reasons, score in zip(answer.items, answer.reasons, answer.scores, strict=True):
        row = ids.index(item)
        assert sum(reason.contribution for reason in reasons) == pytest.approx(score, abs=1e-3)
        for reason in reasons:
            value = float(matrix[row, reason.column]) * float(gains[row])
            live = [j for j in history if matrix[j, reason.column] and j != row]
            right = sorted(live, key=lambda j: -float(matrix[j, reason.column]) * value)
            assert reason.items == [ids[j] for j in right[:most]]
            cut, negative = cut + (len(reason.items) < len(live)), negative + (value < 0)
    assert negative and bool(cut) == (most in (1, 3))
    assert np.any(gains < 0)
