"""Entries on their way to the ranges of their columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hse_dist.sparsity.start.folder import write_entries
from hse_dist.sparsity.start.triples import exchange, read_parts


def test_exchanged_entries_are_the_transpose(small_ranges: int, tmp_path: Path) -> None:
    dense = np.random.default_rng(0).normal(size=(20, 20)).astype(np.float32)
    dense[np.random.default_rng(1).random((20, 20)) < 0.7] = 0
    dense[:, 7:14] = 0  # a range that nothing goes to
    for index, (first, last) in enumerate(ranges := [(0, 7), (7, 14), (14, 20)]):
        rows, columns = np.nonzero(dense[first:last])
        write_entries(tmp_path, index, rows + first, columns, dense[first:last][rows, columns])
        exchange(tmp_path, tmp_path / "left", index)
    found = np.zeros_like(dense)
    for index, (first, last) in enumerate(ranges):
        part = read_parts(tmp_path / "left", index)
        assert ((part.rows >= first) & (part.rows < last)).all()
        assert (np.diff(part.rows * 20 + part.columns) > 0).all()
        found[part.rows, part.columns] = part.values
    np.testing.assert_array_equal(found, dense.T)
