"""Tables of records: every number here can be worked out by hand."""

from __future__ import annotations

import math

import pytest

from hse_dist.benchmark.quality import derive


def record(method, budget, value, *, seed=0, data="a", size=None):
    size = budget if size is None else size
    return {
        "data": data,
        "method": method,
        "budget": budget,
        "bytes_per_item": size,
        "seed": seed,
        "ndcg@100": value,
        "recall@20": value / 2,
        "seconds": 1.0,
    }


RECORDS = [
    record("ours", 64, 0.40, seed=0),
    record("ours", 64, 0.50, seed=1),
    record("ours", 256, 0.48),
    record("knn", 64, 0.44),  # above ours on its one seed, below ours' mean of two
    record("knn", 256, 0.45),
    record("ours-row", 64, 0.42),
    record("full", None, 0.50, size=4000),
]


def test_the_best_of_equal_bytes_stands_first_and_is_marked_over_the_seeds_of_both():
    rows = derive.quality_table(RECORDS, "ours", ("ours", "ours-row"))
    assert [(row["bytes an item"], row["method"]) for row in rows] == [
        (64, "ours"),
        (64, "knn"),
        (64, "ours-row"),
        (256, "ours"),
        (256, "knn"),
        (4000, "full"),
    ]
    ours, knn, row, *rest = rows
    assert ours["nDCG@100"] == pytest.approx(0.45) and (ours["lowest"], ours["highest"], ours["seeds"]) == (0.4, 0.5, 2)
    assert knn["against ours, %"] == pytest.approx(10.0) and knn["mark"] == "above ours"
    assert row["against ours, %"] == pytest.approx(5.0) and row["mark"] == "", "a variant of ours is no baseline"
    assert [other["mark"] for other in rest] == ["", "", ""] and rest[2]["against ours, %"] is None


def test_defeats_name_baselines_of_equal_bytes():
    defeats = derive.defeats(RECORDS, "ours", ("ours", "ours-row"))
    assert defeats == [{"data": "a", "budget": 64, "method": "knn", "ours": 0.40, "theirs": 0.44, "seeds": [0]}]
    assert derive.defeats([*RECORDS[1:]], "ours", ("ours", "ours-row")) == [], "no seed of both"


def test_seeds_that_all_places_have():
    assert derive.shared_seeds(RECORDS, "a") == [0] and derive.shared_seeds(RECORDS, "b") == []
    assert derive.uneven(RECORDS) == {"a": [0]} and derive.uneven([r for r in RECORDS if r["seed"] == 0]) == {}
    assert derive.even(RECORDS) == [r for r in RECORDS if r["seed"] == 0]
    lines = derive.curves(RECORDS, "a")
    assert lines["ours"] == [(64, 0.40), (256, 0.48)] and lines["full"] == [(4000, 0.50)]


@pytest.mark.parametrize(
    ("target", "size"),
    [(0.10, 64), (0.40, 64), (0.44, 128.0), (0.48, 256), (0.4801, None)],
)
def test_bytes_are_interpolated_between_measured_points_alone(target, size):
    found = derive.bytes_to_reach([(64, 0.40), (256, 0.48)], target)
    assert found == (size if size is None else pytest.approx(size))


def test_a_curve_that_falls_again_is_reached_where_it_first_rises():
    points = [(64, 0.40), (128, 0.30), (256, 0.50), (512, 0.45)]
    assert derive.bytes_to_reach(points, 0.45) == pytest.approx(128 * 2 ** (0.15 / 0.20))


def test_bytes_needed_by_every_method():
    rows = {row["method"]: row for row in derive.bytes_needed(RECORDS)}
    assert rows["full"]["within 1 % of the best"] == 4000 and rows["ours"]["within 1 % of the best"] is None
    share = (0.99 * 0.48 - 0.40) / 0.08
    assert rows["ours"]["of its own best"] == pytest.approx(64 * 4**share)
    assert rows["knn"]["of its own best"] == pytest.approx(64 * 4 ** ((0.99 * 0.45 - 0.44) / 0.01))
    assert {row["best of all"] for row in rows.values()} == {0.50}


def test_what_coordination_is_worth():
    kinds = {"global": "ours", "row": "ours-row", "popularity": "ours-popularity"}
    (row,) = derive.coordination(RECORDS, kinds)
    assert (row["bytes an item"], row["global"], row["row"], row["popularity"]) == (64, 0.40, 0.42, None)
    assert row["global gains, %"] == pytest.approx(100 * (0.40 / 0.42 - 1))
    assert (row["best"], row["seeds"]) == ("row", 1)
    assert (row["bytes of row"], row["bytes of popularity"]) == (64, None)
    assert derive.best_kind([row], kinds) is None, "not every kind was measured"
    assert derive.best_kind([row], ("global", "row")) == "row"


def test_shares_of_the_full_model():
    targets = {("a", 64): 0.85}
    small, large = derive.shares(RECORDS, "ours", "full", targets)
    assert (small["share"], small["target"], small["mark"]) == (pytest.approx(0.8), 0.85, "missed")
    assert (large["share"], large["target"], large["mark"]) == (pytest.approx(0.96), None, "")


def test_nothing_measured_gives_empty_tables():
    assert derive.quality_table([], "ours", ()) == derive.bytes_needed([]) == derive.coordination([], {"g": "o"}) == []
    assert math.isnan(derive.bytes_to_reach([(1.0, math.nan)], 0.1) or math.nan)
