"""Triples (row, column, value) on their way from the task that made them to the range that owns the row.

In: the triples of one task. Out: one Parquet part for each range of rows that it touches; and all parts of a range in
canonical order. The parts are the only thing tasks exchange: no task holds more than its own triples or its own range.
After a cut, entries go back in the same way to the ranges that own their columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hse_dist.sparsity.start.folder import ENTRIES_SCHEMA, RANGE_ROWS, range_name


@dataclass(frozen=True)
class Triples:
    """Entries of a sparse table: rows, columns int64 [n], values float32 [n]."""

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]

    def take(self, chosen: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Triples:
        """The triples at an index or under a mask."""
        return Triples(self.rows[chosen], self.columns[chosen], self.values[chosen])


def write_parts(triples: Triples, folder: str | Path, part: int) -> None:
    """Write `folder/range=…/part=….parquet` for every range of rows among the triples."""
    owner = triples.rows // RANGE_ROWS
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner))
    for index, cut in enumerate(np.split(order, ends[:-1])):
        if not len(cut):
            continue
        mine = triples.take(cut)
        path = Path(folder) / f"range={index:05d}" / f"part={part:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = [mine.rows.astype(np.uint32), mine.columns.astype(np.uint32), mine.values]
        pq.write_table(pa.table(arrays, schema=ENTRIES_SCHEMA), path)


def read_parts(folder: str | Path, index: int) -> Triples:
    """All triples of a range, by row, then column, whoever wrote them."""
    paths = sorted((Path(folder) / f"range={index:05d}").glob("part=*.parquet"))
    tables = [pq.read_table(path, partitioning=None) for path in paths]
    table = pa.concat_tables(tables) if tables else ENTRIES_SCHEMA.empty_table()
    rows, columns = (table[name].to_numpy().astype(np.int64) for name in ("row", "column"))
    return Triples(rows, columns, table["value"].to_numpy()).take(np.lexsort((columns, rows)))


def exchange(start: str | Path, folder: str | Path, index: int) -> None:
    """Write the entries of a range of a start folder as parts of the ranges of their columns, rows as columns."""
    table = pq.read_table(Path(start) / "entries" / range_name(index), partitioning=None)
    rows, columns = (table[name].to_numpy().astype(np.int64) for name in ("row", "column"))
    write_parts(Triples(columns, rows, table["value"].to_numpy()), folder, index)
