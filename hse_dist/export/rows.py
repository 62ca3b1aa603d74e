"""Rows on their way into an export: checked, and as a reader will see them.

In: blocks of rows of a table. Out: blocks with columns in rising order, values as they are stored, rows at length 1
where the model has unit rows; and what was seen, counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from hse_dist.errors import ExportError, NumericError
from hse_dist.export.content import Content

MOST_NUMBER = 2.0**30
"""Of values and gains: scores, which are sums of products of three of them, stay finite."""


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows as CSR: int64 `offsets` `[n + 1]` and `columns` `[L]`, float32 `values` `[L]` and `gains` `[n]`.

    Columns of a row are distinct and in any order. Live entries whose value is 0 are kept.
    """

    offsets: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    gains: np.ndarray


@dataclass
class Rows:
    """Blocks as a reader will see them, checked: ids, gains, lengths, columns, values. What was seen is counted.

    Attributes:
        what: has the ids, in errors.
    """

    blocks: Iterable[RowBlock]
    item_ids: pa.Array
    dims: int
    row_norm: str
    value_type: str
    content: Content
    what: str = "item"
    live: int = 0
    negative: int = 0

    def __iter__(self) -> Iterator[tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        first = 0
        for block in self.blocks:
            rows = len(block.offsets) - 1
            if rows == 0:
                continue
            columns, values, gains = _checked(block, first, self)
            ids = self.item_ids.slice(first, rows)
            if len(ids) < rows:
                raise ExportError(f"The tables have more rows than the vocabulary's {len(self.item_ids)} {self.what}s.")
            self.content.add(ids, gains, np.diff(block.offsets), columns, values)
            yield ids, gains, np.diff(block.offsets), columns, values
            first += rows
            self.live += len(columns)
            self.negative += int((gains < 0).sum())
        if first < len(self.item_ids):
            raise ExportError(f"The tables have {first} rows, the vocabulary has {len(self.item_ids)} {self.what}s.")


def _checked(block: RowBlock, first: int, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns in ascending order a row, values and gains as a reader will see them."""
    dims, value_type = rows.dims, rows.value_type
    owner = np.repeat(np.arange(len(block.offsets) - 1), np.diff(block.offsets))
    order = np.lexsort((block.columns, owner))
    columns, values = block.columns[order], block.values[order].astype(np.float32)
    wrong = (columns < 0) | (columns >= dims)
    wrong[1:] |= (columns[1:] == columns[:-1]) & (owner[1:] == owner[:-1])
    if wrong.any():
        where = int(np.argmax(wrong))
        raise ExportError(
            f"Column {columns[where]} of {rows.what} row {first + owner[where]} is out of range or there twice "
            f"(D = {dims})."
        )
    gains = block.gains.astype(np.float32)
    if rows.row_norm == "unit":
        length = np.sqrt(np.bincount(owner, values.astype(np.float64) ** 2, minlength=len(gains)))
        values = (values / np.where(length > 0, length, 1.0)[owner]).astype(np.float32)
        gains = np.ones_like(gains)
    with np.errstate(over="ignore"):
        # no −0: the layout `block` means something by it
        values = values.astype(value_type).astype(np.float32) + np.float32(0)
    bad = ~(np.abs(gains) <= MOST_NUMBER)
    bad[owner[~(np.abs(values) <= MOST_NUMBER)]] = True
    if bad.any():
        raise NumericError(
            f"A value or gain of {rows.what} row {first + int(np.argmax(bad))} is not finite as {value_type}, or above "
            "2^30.",
            cause="Training diverged, or the values exceed what float16 holds (65 504).",
        )
    return columns, values, gains
