"""Rows as runs of chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hse_dist.errors import ConfigError
from hse_dist.tables.layout import RowLayout


@given(st.lists(st.integers(0, 70), min_size=1, max_size=30), st.sampled_from([8, 16, 32]), st.data())
def test_chunks_of_equals_a_loop(lengths, width, data):
    layout = RowLayout.from_lengths(np.array(lengths), width)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=12))
    ids, bounds = layout.chunks_of(torch.tensor(rows, dtype=torch.int64))
    expected = [list(range(int(layout.offsets[r]), int(layout.offsets[r + 1]))) for r in rows]
    assert ids.tolist() == [chunk for row in expected for chunk in row]
    assert bounds.tolist() == np.concatenate([[0], np.cumsum([len(e) for e in expected])]).astype(int).tolist()
    assert np.all(layout.capacities(0, layout.rows) >= np.maximum(lengths, 1))
    assert np.all(layout.capacities(0, layout.rows) - np.maximum(lengths, 1) < width)


def test_rows_belong_to_the_range_of_their_first_chunk():
    layout = RowLayout.from_lengths(np.array([20, 8, 9, 1]), 8)  # chunks 0-2, 3, 4-5, 6
    ranges = {(0, 1): (0, 1), (1, 5): (1, 3), (5, 7): (3, 4), (7, 7): (4, 4)}
    assert {chunks: layout.rows_starting_in(*chunks) for chunks in ranges} == ranges


def test_a_table_without_rows_is_refused():
    with pytest.raises(ConfigError, match="at least one row"):
        RowLayout.from_lengths(np.empty(0, np.int64), 16)
