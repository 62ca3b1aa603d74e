"""Exact selection by radix histograms, against a stable sort of everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hse_dist.errors import NumericError, ProtocolError
from hse_dist.sparsity.selection import RadixSelection, Selection, chosen, histogram, order_keys, select

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
few = st.sampled_from([-3.5, -1e-40, -0.0, 0.0, 1e-45, 1.0, 1.0000001, 2.0, 3.4e38])  # many ties, subnormals


@st.composite
def segments(draw: st.DrawFn) -> list[np.ndarray]:
    sizes = draw(st.lists(st.integers(0, 30), min_size=1, max_size=12))
    elements = draw(st.sampled_from([finite, few]))
    return [draw(hnp.arrays(np.float32, size, elements=elements)) for size in sizes]


def by_sorting(scores: list[np.ndarray], count: int, largest: bool) -> np.ndarray:
    """The mask of the first `count` of all scores by value, ties by position."""
    flat = np.concatenate(scores).astype(np.float64)
    mask = np.zeros(len(flat), bool)
    mask[np.argsort(-flat if largest else flat, kind="stable")[:count]] = True
    return mask


@given(segments(), st.integers(0, 200), st.booleans())
@settings(max_examples=300, deadline=None)
def test_selection_equals_a_stable_sort(scores: list[np.ndarray], count: int, largest: bool) -> None:
    masks = select([order_keys(part) for part in scores], count, largest)
    assert [len(mask) for mask in masks] == [len(part) for part in scores]
    np.testing.assert_array_equal(np.concatenate(masks), by_sorting(scores, count, largest))


@given(hnp.arrays(np.float32, 40, elements=finite))
@settings(deadline=None)
def test_keys_keep_the_order(scores: np.ndarray) -> None:
    keys, wide = order_keys(scores).astype(np.int64), scores.astype(np.float64)
    np.testing.assert_array_equal(np.sign(keys[:, None] - keys[None]), np.sign(wide[:, None] - wide[None]))


def test_many_equal_scores_over_many_segments() -> None:
    rng = np.random.default_rng(0)
    scores = np.split(rng.integers(0, 40, 200_000).astype(np.float32), np.sort(rng.integers(0, 200_000, 63)))
    for count, largest in ((1, True), (77_777, True), (77_777, False), (200_000, True)):
        masks = select([order_keys(part) for part in scores], count, largest)
        np.testing.assert_array_equal(np.concatenate(masks), by_sorting(scores, count, largest))


def test_the_cut_into_segments_does_not_matter() -> None:
    keys = order_keys(np.random.default_rng(1).integers(-5, 5, 999).astype(np.float32))
    whole = select([keys], 400, True)[0]
    np.testing.assert_array_equal(np.concatenate(select(np.array_split(keys, 17), 400, True)), whole)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(NumericError, match="Score 2 of 4"):
        order_keys(np.array([0, 1, bad, 3], np.float32))


def test_histograms_that_do_not_fit_are_refused() -> None:
    keys = order_keys(np.arange(10, dtype=np.float32))
    with pytest.raises(ProtocolError, match="negative"):
        RadixSelection(-1, True)
    server = RadixSelection(4, True)
    with pytest.raises(ProtocolError, match="round 0"):
        server.feed(np.zeros((1, 8), np.int64))
    query = server.feed(histogram(keys, server.query)[None])
    assert not isinstance(query, Selection)
    with pytest.raises(ProtocolError, match="changed between the rounds"):
        server.feed(histogram(keys[:0], query)[None])


def test_a_complete_selection_takes_no_more() -> None:
    keys = order_keys(np.arange(10, dtype=np.float32))
    server = RadixSelection(0, True)
    first = histogram(keys, server.query)[None]
    answer = server.feed(first)
    assert answer == Selection(threshold=2**32 - 1, quotas=(0,), count=0)
    assert isinstance(answer, Selection) and not chosen(keys, answer, 0, True).any()
    with pytest.raises(ProtocolError, match="complete"):
        server.feed(first)
