"""Lists of rows back to back.

In and out: offsets int64 [n + 1] and rows int64 [L]; list i is rows[offsets[i]:offsets[i + 1]]. No Python object a list
is made.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

Lists = tuple[np.ndarray, np.ndarray]


def no_lists(count: int) -> Lists:
    """Empty lists."""
    return np.zeros(count + 1, np.int64), np.zeros(0, np.int64)


def take_lists(offsets: np.ndarray, rows: np.ndarray, chosen: np.ndarray) -> Lists:
    """The lists with these numbers (int64 [m]), in this order."""
    lengths = np.diff(offsets)[chosen]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return ends, rows[np.repeat(offsets[chosen] - ends[:-1], lengths) + np.arange(ends[-1])]


def slice_lists(offsets: np.ndarray, rows: np.ndarray, first: int, last: int) -> Lists:
    """Lists first … last − 1; rows are a view."""
    start, stop = offsets[first], offsets[last]
    return offsets[first : last + 1] - start, rows[start:stop]


def joined_lists(several: Sequence[Lists]) -> Lists:
    """All lists, one after the other."""
    lengths = [np.diff(offsets) for offsets, _ in several]
    offsets = np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum()
    return offsets, np.concatenate([np.zeros(0, np.int64), *(rows for _, rows in several)])


def to_arrow(offsets: np.ndarray, rows: np.ndarray) -> pa.ListArray:
    """list<uint32> [n]."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(rows.astype(np.uint32)))


def from_arrow(column: pa.ListArray) -> Lists:
    """Lists of an Arrow column, which may be a slice."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], column.flatten().to_numpy().astype(np.int64)
