"""Shares of a budget: exact sums, bounds, proportions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hse_dist.sparsity.budget import erdos_renyi, row_lengths


@st.composite
def length_rules(draw: st.DrawFn) -> dict[str, object]:
    live = draw(st.integers(1, 40))
    counts = np.array(draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=60)), np.int64)
    return {
        "counts": counts,
        "total": live * len(counts),
        "floor": draw(st.integers(1, live)),
        "ceiling": draw(st.integers(live, 90)),
        "power": draw(st.sampled_from([0.0, 0.5, 1.0, 3.0, 80.0])),
    }


@given(length_rules())
@settings(max_examples=200, deadline=None)
def test_lengths_add_up_within_their_bounds(rule: dict) -> None:
    lengths = row_lengths(**rule)
    assert lengths.sum() == rule["total"]
    assert rule["floor"] <= lengths.min() and lengths.max() <= rule["ceiling"]
    order = np.argsort(rule["counts"], kind="stable")
    ordered = lengths[order][np.maximum(rule["counts"], 1)[order].argsort(kind="stable")]
    assert (np.diff(ordered) >= -1).all()  # more popular rows are not shorter, but for the rounding
    if rule["power"] == 0.0:
        assert (lengths == rule["total"] // len(lengths)).all()


def test_lengths_follow_the_power() -> None:
    lengths = row_lengths(np.array([1600, 400, 100, 25]), total=120, power=0.5, floor=1, ceiling=1000)
    np.testing.assert_array_equal(lengths, [64, 32, 16, 8])


def test_a_row_that_has_too_few_leaves_the_rest_to_others() -> None:
    lengths = row_lengths(
        np.array([1600, 400, 100, 25]), total=60, power=0.5, floor=4, ceiling=np.array([2, 100, 100, 100])
    )
    # 58 entries for weights 20, 10, 5
    np.testing.assert_array_equal(lengths, [2, 33, 17, 8])


def test_erdos_renyi_gives_densities_by_shape_and_exact_numbers() -> None:
    shapes = [(1000, 4096), (200, 64), (50_000, 300)]
    found = erdos_renyi(shapes, 54_289)
    assert found.sum() == 54_289 and found[2] == 50_000  # no fewer than it has rows
    density = found[:2] / np.prod(shapes[:2], axis=1)
    expected = np.array([(rows + dims) / (rows * dims) for rows, dims in shapes[:2]])
    np.testing.assert_allclose(density / density[0], expected / expected[0], rtol=1e-2)
    assert erdos_renyi([(10, 3), (1000, 1000)], 10_000).tolist() == [30, 9970]  # no more than it has entries


@pytest.mark.parametrize("total", [7, 64, 7 * 30])
def test_one_table_gets_the_whole(total: int) -> None:
    assert erdos_renyi([(7, 30)], total).tolist() == [total]
