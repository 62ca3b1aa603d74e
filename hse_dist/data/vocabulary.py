"""Which items there are, and in which order they become rows.

In: the distinct items of every part with their counts. Out: `Items` (all ids, sorted, with their counts), then the
vocabulary: rows by falling count of training interactions, ties by id. Everything is of the size of the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MERGE_ROWS = 4_000_000
"""Rows of (item, count) gathered before they are merged."""


def merge_counts(parts: Iterable[pa.Table]) -> pa.Table:
    """Columns item (distinct, rising) and count (int64) of the sums over all parts."""
    held: list[pa.Table] = []
    for part in parts:
        held.append(part)
        # as many new rows as merged ones before each merge: linear time in all
        if sum(table.num_rows for table in held[1:]) > max(MERGE_ROWS, held[0].num_rows):
            held = [_sum(held)]
    return _sum(held).sort_by("item")


def _sum(tables: list[pa.Table]) -> pa.Table:
    summed = pa.concat_tables(tables).group_by("item", use_threads=False).aggregate([("count", "sum")])
    return summed.rename_columns({"count_sum": "count"})


def positions(ids: pa.Array, among: pa.Array) -> np.ndarray:
    """Position of each id in `among` (sorted), −1 where it is not there; int64 [len(ids)]."""
    if pa.types.is_integer(ids.type):
        known, wanted = among.to_numpy(), ids.to_numpy()
        if not len(known):
            return np.full(len(wanted), -1)
        found = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        return np.where(known[found] == wanted, found, -1)
    return pc.fill_null(pc.index_in(ids, value_set=among), -1).to_numpy().astype(np.int64)


def assign_rows(train_counts: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Row of each item, −1 for items that no user kept; int64 [items].

    Args:
        train_counts: int64 [items], interactions by training users; items sorted by id.
        used: bool [items], whether any kept user of any split has the item.
    """
    # stable, so that ties keep the order of the ids
    order = np.argsort(-train_counts, kind="stable")
    order = order[used[order]]
    rows = np.full(len(train_counts), -1, np.int64)
    rows[order] = np.arange(len(order))
    return rows


def write_vocabulary(path: Path, items: pa.Array, rows: np.ndarray, train_counts: np.ndarray) -> None:
    """Write columns row (uint32), item (int64 or string) and count (uint32), in row order."""
    order = np.empty(int(rows.max(initial=-1)) + 1, np.int64)
    known = np.flatnonzero(rows >= 0)
    order[rows[known]] = known
    table = pa.table(
        {
            "row": pa.array(np.arange(len(order), dtype=np.uint32)),
            "item": plain_ids(items.take(pa.array(order))),
            "count": pa.array(train_counts[order].astype(np.uint32)),
        }
    )
    pq.write_table(table, path, compression="zstd")


def plain_ids(ids: pa.Array) -> pa.Array:
    """Ids as they are stored for others: int64 or string."""
    return ids.cast(pa.string()) if pa.types.is_large_string(ids.type) else ids
