"""Raw ids to rows.

In: the ids of an export, an Arrow array in the order of the rows. Out: the rows of other ids.

A look-up that goes through all ids takes milliseconds where there are a million. With their order, which takes a
second to find, it takes microseconds; so the order is made when looking through them has taken as long, unless the
export has it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PATIENCE = 64
"""All ids are looked through this many times before they are put in order."""
FLOATS = float, np.floating
FEW = 20
"""Of up to 1 / `FEW` as many ids as there are, a table is made of the former."""


def order_of(ids: pa.Array) -> np.ndarray:
    """The rows by rising id, int32; strings go by their bytes."""
    return pc.sort_indices(ids).to_numpy().astype(np.int32)


def as_array(ids: list[Any], kind: pa.DataType) -> pa.Array:
    """Raw ids in the export's type; what does not convert becomes null, as it cannot be an item."""
    if pa.types.is_integer(kind):
        # Arrow would cut them off
        ids = [None if isinstance(one, FLOATS) and not float(one).is_integer() else one for one in ids]
    try:
        return pa.array(ids, kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.concat_arrays([_as_scalar(item, kind) for item in ids])


def _as_scalar(item: Any, kind: pa.DataType) -> pa.Array:
    try:
        return pa.array([item], kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.nulls(1, kind)


class Ids:
    """Args:
    ids: distinct, none missing. order: `order_of(ids)`; None: made when it pays.
    """

    def __init__(self, ids: pa.Array, order: np.ndarray | None = None) -> None:
        self._ids, self._order, self._looked = ids, order, 0
        self._text_of: Callable[[int], bytes] | None = None

    @property
    def ordered(self) -> bool:
        return self._order is not None

    def prepare(self) -> None:
        """Make the order now."""
        if self._order is None:
            self._order = order_of(self._ids)

    def rows_of(self, ids: pa.Array) -> np.ndarray:
        """The rows of ids of the same type, int64; −1 for null and for what is not there."""
        if FEW * len(ids) >= len(self._ids):
            return pc.index_in(ids, value_set=self._ids).fill_null(-1).to_numpy().astype(np.int64)
        if self._order is None and self._looked >= PATIENCE:
            self.prepare()
        if self._order is not None:
            return self._by_order(ids, self._order)
        self._looked += 1
        distinct = ids.unique()
        places = pc.index_in(self._ids, value_set=distinct)
        row_of = np.full(len(distinct), -1, np.int64)
        row_of[places.drop_null().to_numpy()] = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
        return row_of[pc.index_in(ids, value_set=distinct).to_numpy()]

    def _by_order(self, ids: pa.Array, order: np.ndarray) -> np.ndarray:
        rows = np.full(len(ids), -1, np.int64)
        whole = pa.types.is_integer(ids.type)
        id_of = self._ids.to_numpy().item if whole else self._texts()
        for place, item in enumerate(ids.to_pylist()):
            if item is not None:
                asked = item if whole else item.encode()
                at = bisect_left(order, asked, key=id_of)
                if at < len(order) and id_of(order[at]) == asked:
                    rows[place] = order[at]
        return rows

    def _texts(self) -> Callable[[int], bytes]:
        """The bytes of the string of a row; Arrow's own objects take three times as long."""
        if self._text_of is None:
            wide = pa.types.is_large_string(self._ids.type)
            _, offsets, buffer = self._ids.buffers()
            ends = np.frombuffer(offsets, np.int64 if wide else np.int32)[self._ids.offset :]
            texts = memoryview(buffer) if buffer is not None else memoryview(b"")
            self._text_of = lambda row: bytes(texts[ends[row] : ends[row + 1]])
        return self._text_of
