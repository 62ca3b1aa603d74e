"""The start folder: what every start writes and what the tables are filled from.

    manifest.json                   kind, rows, dims, live, statistics, the settings it was made from
    rows/range=00000.parquet        row uint32, live uint32, gain float32
    entries/range=00000.parquet     row uint32, column uint32, value float32; by row, then column

In: entries of one range of rows at a time. Out: the same, for any range of rows, so that a rank reads only its shard.
Ranges have a fixed number of rows: the files depend on the start alone, not on how many tasks wrote them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hse_dist.config import MAX_DIMS
from hse_dist.errors import DataError
from hse_dist.files import read_json, refuse_devices

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

VERSION = 1
RANGE_ROWS = 8192
"""Rows a file. Popular rows have most of the entries, so that ranges must be small enough for the first one."""

ENTRIES_SCHEMA = pa.schema([("row", pa.uint32()), ("column", pa.uint32()), ("value", pa.float32())])
ROWS_SCHEMA = pa.schema([("row", pa.uint32()), ("live", pa.uint32()), ("gain", pa.float32())])


def row_ranges(rows: int) -> list[tuple[int, int]]:
    """(first, last) of every range; `last` is excluded."""
    return [(first, min(first + RANGE_ROWS, rows)) for first in range(0, rows, RANGE_ROWS)]


def range_name(index: int) -> str:
    return f"range={index:05d}.parquet"


def write_entries(folder: str | Path, index: int, rows: Ints, columns: Ints, values: Floats) -> None:
    """Write the entries of one range, sorted by (row, column)."""
    arrays = [rows.astype(np.uint32), columns.astype(np.uint32), values.astype(np.float32, copy=False)]
    _write(Path(folder) / "entries" / range_name(index), arrays, ENTRIES_SCHEMA)


def write_rows(folder: str | Path, index: int, live: Ints, gains: Floats) -> None:
    """Write length and gain of the rows of one range."""
    first = index * RANGE_ROWS
    arrays = [np.arange(first, first + len(live), dtype=np.uint32), live.astype(np.uint32), gains.astype(np.float32)]
    _write(Path(folder) / "rows" / range_name(index), arrays, ROWS_SCHEMA)


def _write(path: Path, arrays: list[npt.NDArray[Any]], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays, schema=schema), path)


class StartFolder:
    """A finished start, opened read-only.

    Attributes:
        rows: number of rows. dims: number of columns. live_entries: entries in all.
        manifest: see the module.

    Raises:
        DataError: there is no finished start, or it is of another version; a file of it is missing or holds what no
            start has: what is read indexes memory.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        # the manifest is written last: where it is, the start is whole
        self.manifest: dict[str, Any] = read_json(self.folder / "manifest.json", "manifest of the start")
        version = self.manifest.get("version") if isinstance(self.manifest, dict) else None
        if version != VERSION:
            raise DataError(
                f"The start at {self.folder} has version {version}, this program reads {VERSION}.",
                cause="Remove the folder; the next training run makes it again.",
            )
        self.rows, self.dims, self.live_entries = (self._size(key) for key in ("rows", "dims", "live_entries"))

    def _size(self, key: str) -> int:
        size, most = self.manifest.get(key), MAX_DIMS if key == "dims" else 2**62
        if type(size) is not int or not 0 <= size <= most:
            raise self._wrong(f"has {key} = {size!r} in its manifest")
        return size

    def _wrong(self, what: str) -> DataError:
        return DataError(
            f"The start at {self.folder} {what}.", cause="Remove the folder; the next training run makes it again."
        )

    def live(self, first: int = 0, last: int | None = None) -> Ints:
        """Entries of the rows first … last - 1, int64 [last - first]."""
        return self._read("rows", ["live"], first, last)["live"].to_numpy().astype(np.int64)

    def gains(self, first: int = 0, last: int | None = None) -> Floats:
        """Gains of the rows first … last - 1, float32 [last - first]."""
        gains = self._read("rows", ["gain"], first, last)["gain"].to_numpy()
        if not np.isfinite(gains).all():
            raise self._wrong(f"has gains that are not finite among the rows from {first} on")
        return gains

    def entries(self, first: int = 0, last: int | None = None) -> tuple[Ints, Ints, Floats]:
        """The rows first … last - 1 as CSR, columns ascending within a row.

        Returns:
            row offsets int64 [last - first + 1], columns int64 [n], values float32 [n].
        """
        table, live = self._read("entries", ["column", "value"], first, last), self.live(first, last)
        if live.sum() != len(table) or (np.repeat(first + np.arange(len(live)), live) != table["row"].to_numpy()).any():
            raise self._wrong(f"has files that do not belong together, in the rows from {first} on")
        columns, values = table["column"].to_numpy().astype(np.int64), table["value"].to_numpy()
        offsets = np.concatenate([[0], np.cumsum(live)])
        falls = columns[1:] <= columns[:-1]
        falls[offsets[1:-1][(offsets[1:-1] > 0) & (offsets[1:-1] < len(columns))] - 1] = False  # from row to row
        if columns.max(initial=-1) >= self.dims or falls.any() or not np.isfinite(values).all():
            raise self._wrong(f"has columns that fall or are beyond {self.dims}, or values that are not finite")
        return offsets, columns, values

    def _read(self, kind: str, columns: list[str], first: int, last: int | None) -> pa.Table:
        last = self.rows if last is None else last
        if not 0 <= first <= last <= self.rows:
            raise IndexError(f"rows {first} to {last} of {self.rows}")
        schema = ENTRIES_SCHEMA if kind == "entries" else ROWS_SCHEMA
        columns = ["row", *columns]
        tables = [pa.schema([schema.field(name) for name in columns]).empty_table()]
        for index in range(first // RANGE_ROWS, -(-last // RANGE_ROWS)):
            table = _checked_read(self.folder / kind / range_name(index), columns, schema)
            rows = table["row"].to_numpy()
            begin, end = np.searchsorted(rows, [first, last])
            if (rows[1:] < rows[:-1]).any():
                raise self._wrong(f"has rows that fall in {range_name(index)}")
            tables.append(table.slice(begin, end - begin).select(columns))
        table = pa.concat_tables(tables)
        if kind == "rows" and not np.array_equal(table["row"].to_numpy(), np.arange(first, last)):
            raise self._wrong(f"has not every row from {first} to {last}")
        return table


def _checked_read(path: Path, columns: list[str], schema: pa.Schema) -> pa.Table:
    try:
        refuse_devices(path)
        table = pq.read_table(path, columns=columns, partitioning=None)
    except (OSError, pa.ArrowException, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"The file {path} of the start cannot be read: {error}.") from None
    names = table.column_names
    if any(names.count(name) != 1 or table.schema.field(name) != schema.field(name) for name in columns):
        raise DataError(f"The file {path} of the start has the columns {names}, not {schema.names}.")
    if any(column.null_count for column in table.columns):
        raise DataError(f"The file {path} of the start has missing numbers.")
    return table
