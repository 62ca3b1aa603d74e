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

from hse_dist.data.generations import Generations

MERGE_ROWS = 4_000_000
"""Rows of (item, count) gathered before they are merged."""
BLOCK_IDS = 1 << 16
"""Ids of the catalogue that a task holds at a time."""
MAPPED_ROWS = 1 << 20
"""Rows of the catalogue that a task maps at a time."""


def item_counts(folder: str) -> pa.Table:
    """Columns item and count (distinct users) of a part's folder."""
    with pa.OSFile(f"{folder}/items.arrow") as source:
        items = pa.ipc.open_file(source).get_batch(0).column("id")
    return pa.table({"item": items, "count": np.load(f"{folder}/users-of-items.npy")})


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


def write_ids(path: Path, ids: pa.Array) -> None:
    """Write sorted ids as an Arrow file with a record batch every `BLOCK_IDS`."""
    schema = pa.schema([("id", ids.type)])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for first in range(0, len(ids), BLOCK_IDS):
            writer.write_batch(pa.RecordBatch.from_arrays([ids.slice(first, BLOCK_IDS)], schema=schema))


def read_ids(path: Path) -> pa.Array:
    """The first `BLOCK_IDS` of the ids of `write_ids`."""
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(0).column("id")


def positions(ids: pa.Array, path: Path) -> np.ndarray:
    """Position of each id among those of `write_ids`, −1 where it is not there.

    Both are sorted, so they are walked through together, and memory holds a block of the catalogue at a time.

    Args:
        ids: sorted and distinct [n].
        path: of the file.

    Returns:
        int32 [n].
    """
    found = np.full(len(ids), -1, np.int32)
    first, ids = 0, _bytes(ids)
    with pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            block = _bytes(reader.get_batch(index).column("id"))
            last = _rank(ids, block[-1].as_py(), first)
            if last > first:
                found[first:last] = _inside(ids.slice(first, last - first), block, index * BLOCK_IDS)
            first = last
    return found


def _bytes(ids: pa.Array) -> pa.Array:
    """Strings as bytes, by which Arrow sorts them; integers as they are."""
    return ids.view(pa.large_binary()) if pa.types.is_large_string(ids.type) else ids


def _rank(ids: pa.Array, value: int | bytes, low: int) -> int:
    """How many of the sorted ids are at most `value`; at least `low` of them are."""
    high = len(ids)
    while low < high:
        middle = (low + high) // 2
        if ids[middle].as_py() <= value:
            low = middle + 1
        else:
            high = middle
    return low


def _inside(ids: pa.Array, block: pa.Array, start: int) -> np.ndarray:
    """Position of each id in a block of the catalogue that begins at `start`, −1 where it is not there."""
    # a search, since a hash table of the block would take 17 times as long; no id is greater than the block's last
    places = pc.search_sorted(block, ids)
    same = pc.equal(block.take(places), ids).to_numpy(zero_copy_only=False)
    return np.where(same, places.to_numpy().astype(np.int64) + start, -1)


def take_rows(path: Path, places: np.ndarray) -> np.ndarray:
    """The rows (a .npy file, int32 [items]) at rising places, −1 where the place is −1; int32 [n].

    The file is mapped a piece at a time: each process would hold all of it otherwise.
    """
    rows = np.full(len(places), -1, np.int32)
    known = np.flatnonzero(places >= 0)
    wanted = places[known]
    first = 0
    while first < len(known):
        last = int(np.searchsorted(wanted, wanted[first] + MAPPED_ROWS))
        rows[known[first:last]] = np.load(path, mmap_mode="r")[wanted[first:last]]
        first = last
    return rows


def assign_rows(train_counts: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Row of each item, −1 for items that no user kept; int32 [items].

    Args:
        train_counts: int64 [items], interactions by training users; items sorted by id.
        used: bool [items], whether any kept user of any split has the item.
    """
    # stable, so that ties keep the order of the ids
    order = np.argsort(-train_counts, kind="stable")
    order = order[used[order]]
    rows = np.full(len(train_counts), -1, np.int32)
    rows[order] = np.arange(len(order))
    return rows


def write_vocabulary(
    path: Path,
    items: pa.Array,
    rows: np.ndarray,
    train_counts: np.ndarray,
    generations: Generations | None = None,
    before: pa.Array | None = None,
    what: str = "item",
) -> None:
    """Write columns row (uint32), item (int64 or string) and count (uint32), in row order; and, of a version that
    extends another one, since (uint32) and evicted (bool).

    Args:
        what: name of the column of items, which may be values of a feature.
        before: item of each row of that other version; evicted rows keep it.
    """
    size = int(rows.max(initial=-1)) + 1 if generations is None else len(generations.since)
    order, counts = np.zeros(size, np.int64), np.zeros(size, np.uint32)
    known = np.flatnonzero(rows >= 0)
    order[rows[known]] = known
    counts[rows[known]] = train_counts[known]
    ids = plain_ids(items.take(pa.array(order)))
    columns: dict[str, pa.Array] = {"row": pa.array(np.arange(size, dtype=np.uint32))}
    if generations is not None:
        if generations.evicted.any() and before is not None:
            old = before.take(pa.array(np.minimum(np.arange(size), len(before) - 1)))
            ids = pc.if_else(pa.array(generations.evicted), old, ids)
        columns["since"] = pa.array(generations.since.astype(np.uint32))
        columns["evicted"] = pa.array(generations.evicted)
    pq.write_table(pa.table({**columns, what: ids, "count": pa.array(counts)}), path, compression="zstd")


def plain_ids(ids: pa.Array) -> pa.Array:
    """Ids as they are stored for others: int64 or string."""
    return ids.cast(pa.string()) if pa.types.is_large_string(ids.type) else ids
