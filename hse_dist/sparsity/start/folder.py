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

from hse_dist.errors import DataError
from hse_dist.files import read_json

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
        DataError: there is no finished start, or it is of another version.
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
        self.rows: int = self.manifest["rows"]
        self.dims: int = self.manifest["dims"]
        self.live_entries: int = self.manifest["live_entries"]

    def live(self, first: int = 0, last: int | None = None) -> Ints:
        """Entries of the rows first … last - 1, int64 [last - first]."""
        return self._read("rows", ["live"], first, last)["live"].to_numpy().astype(np.int64)

    def gains(self, first: int = 0, last: int | None = None) -> Floats:
        """Gains of the rows first … last - 1, float32 [last - first]."""
        return self._read("rows", ["gain"], first, last)["gain"].to_numpy()

    def entries(self, first: int = 0, last: int | None = None) -> tuple[Ints, Ints, Floats]:
        """The rows first … last - 1 as CSR, columns ascending within a row.

        Returns:
            row offsets int64 [last - first + 1], columns int64 [n], values float32 [n].
        """
        table = self._read("entries", ["column", "value"], first, last)
        offsets = np.concatenate([[0], np.cumsum(self.live(first, last))])
        if offsets[-1] != len(table):
            raise DataError(
                f"The start at {self.folder} has {len(table)} entries in rows {first} to {last}, not {offsets[-1]}.",
                cause="Its files do not belong together; remove the folder.",
            )
        return offsets, table["column"].to_numpy().astype(np.int64), table["value"].to_numpy()

    def _read(self, kind: str, columns: list[str], first: int, last: int | None) -> pa.Table:
        last = self.rows if last is None else last
        if not 0 <= first <= last <= self.rows:
            raise IndexError(f"rows {first} to {last} of {self.rows}")
        schema = ENTRIES_SCHEMA if kind == "entries" else ROWS_SCHEMA
        tables = [pa.schema([schema.field(name) for name in columns]).empty_table()]
        for index in range(first // RANGE_ROWS, -(-last // RANGE_ROWS)):
            table = _checked_read(self.folder / kind / range_name(index), ["row", *columns], schema)
            begin, end = np.searchsorted(table["row"].to_numpy(), [first, last])
            tables.append(table.slice(begin, end - begin).select(columns))
        return pa.concat_tables(tables)


def _checked_read(path: Path, columns: list[str], schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path, columns=columns, partitioning=None)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"The file {path} of the start cannot be read: {error}.") from None
    if any(name not in table.column_names or table.schema.field(name) != schema.field(name) for name in columns):
        raise DataError(f"The file {path} of the start has the columns {table.schema.names}, not {schema.names}.")
    return table
