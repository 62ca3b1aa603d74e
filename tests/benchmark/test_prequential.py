"""Days are replayed: each is a test before it is training data."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from hse_dist.benchmark.prequential import benchmark_prequential
from hse_dist.benchmark.report import finish
from hse_dist.config import SyntheticSettings
from hse_dist.data.synthetic import days

SMALL = {"users": 400, "items": 200, "history": 15, "days": 3, "live": 8}


def test_days_are_replayed_and_a_model_that_is_never_trained_again_knows_no_newer_item(tmp_path):
    report = benchmark_prequential(**SMALL, epochs=1, daily_epochs=1)
    rows = {row["model"]: row for row in report.rows}
    assert list(rows) == ["continued", "retrained", "never"]
    figures = report.figures
    assert figures["ndcg_new_never"] == 0.0 and figures["ndcg_never"] > 0
    # what is folded in is recommended to those who take it, and does not push all else aside
    assert figures["ndcg_new_continued"] > 0 and figures["ndcg_new_retrained"] > 0
    assert figures["ndcg_continued"] > 0.7 * figures["ndcg_never"]
    assert rows["continued"]["seconds a day"]["median"] > 0 == rows["never"]["seconds a day"]
    assert finish(report, tmp_path)["kind"] == "prequential" and (tmp_path / "prequential.png").stat().st_size > 0


def test_every_day_has_items_that_are_new_and_most_are_there_on_the_first():
    settings = SyntheticSettings(users=500, items=300, mean_history=20)
    log = days(settings, 4, first=0.5, known=0.6)
    seen: set[int] = set()
    for users, items, times in log:
        new = set(items.tolist()) - seen
        assert len(users) == len(items) == len(times) and len(new) > 10
        seen |= new
    assert len(log[0][0]) > max(len(users) for users, _, _ in log[1:])
    for (_, _, before), (_, _, after) in pairwise(log):
        assert before.max() < after.min()
    again = days(settings, 4, first=0.5, known=0.6)
    assert all(np.array_equal(a, b) for one, two in zip(log, again, strict=True) for a, b in zip(one, two, strict=True))


@pytest.mark.slow
def test_continuing_costs_less_than_training_anew_and_is_worth_more_than_nothing():
    figures = benchmark_prequential(days=5).figures
    assert figures["ndcg_continued"] > figures["ndcg_never"]
    assert figures["ndcg_new_continued"] > 0.8 * figures["ndcg_new_retrained"] > 0
    assert figures["seconds_a_day_continued"] < figures["seconds_a_day_retrained"]
