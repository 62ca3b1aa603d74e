"""The files of an export that any program reads: `items.parquet`, and `items.npz` for SciPy.

In: checked blocks of rows. Out: the files, one block in memory at a time; and what `items.parquet` holds.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hse_dist.export.layouts import Csr
from hse_dist.export.npz import NpzWriter

ITEMS, NPZ = "items.parquet", "items.npz"
_ARROW_VALUES = {"float32": pa.float32(), "float16": pa.float16()}


def column_type(dims: int) -> pa.DataType:
    """The smallest unsigned type that holds columns `0 … dims - 1`."""
    return next(t for t in (pa.uint8(), pa.uint16(), pa.uint32()) if dims <= 2**t.bit_width)


class ItemsWriter:
    """`items.parquet`: a row an item, with its id and gain. Context manager."""

    def __init__(self, folder: Path, ids: pa.DataType, lists: tuple[pa.Field, ...] = ()) -> None:
        self._schema = pa.schema([pa.field("item", ids), pa.field("gain", pa.float32()), *lists])
        # a dictionary packs columns into as few bits as they need; Parquet itself has no integers below 32 bits. Ids
        # and gains hardly ever repeat: a dictionary would make them longer
        packed = [f"{field.name}.list.element" for field in lists if field.name == "columns"]
        self._parquet = pq.ParquetWriter(folder / ITEMS, self._schema, compression="zstd", use_dictionary=packed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parquet.close()

    def add(self, ids: pa.Array, gains: np.ndarray, lists: tuple[pa.Array, ...] = ()) -> None:
        """The next items."""
        self._parquet.write_table(pa.table([ids, pa.array(gains, pa.float32()), *lists], schema=self._schema))


class OpenWriter:
    """Both files, with the matrix in each of them. Context manager."""

    def __init__(self, folder: Path, dims: int, value_type: str, ids: pa.DataType) -> None:
        self._lists, self._value_type = list_fields(dims, value_type), value_type
        self._stack = ExitStack()
        self._folder, self._dims, self._ids = folder, dims, ids

    def __enter__(self) -> Self:
        self._npz = self._stack.enter_context(NpzWriter(self._folder / NPZ, self._dims))
        self._items = self._stack.enter_context(ItemsWriter(self._folder, self._ids, self._lists))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(
        self, ids: pa.Array, gains: np.ndarray, lengths: np.ndarray, columns: np.ndarray, values: np.ndarray
    ) -> None:
        """The next items."""
        self._npz.add(lengths, columns, values)
        self._items.add(ids, gains, lists_of(lengths, columns, values, self._dims, self._value_type))


def list_fields(dims: int, value_type: str) -> tuple[pa.Field, pa.Field]:
    """Of the columns `columns` and `values`."""
    kinds = {"columns": column_type(dims), "values": _ARROW_VALUES[value_type]}
    columns, values = (pa.field(name, pa.list_(kind)) for name, kind in kinds.items())
    return columns, values


def lists_of(
    lengths: np.ndarray, columns: np.ndarray, values: np.ndarray, dims: int, value_type: str
) -> tuple[pa.Array, ...]:
    """Rows as lists of columns and of values."""
    ends, kind = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), column_type(dims)
    flats = (
        pa.array(columns.astype(kind.to_pandas_dtype()), kind),
        pa.array(values.astype(value_type), _ARROW_VALUES[value_type]),
    )
    return tuple(pa.ListArray.from_arrays(ends, flat) for flat in flats)


def read_items(folder: Path, items: int) -> pa.Table:
    """What `items.parquet` holds, if these are so many items with gains.

    Raises:
        OSError, ValueError, pa.ArrowException: it cannot be read, or holds something else.
    """
    with pq.ParquetFile(folder / ITEMS) as file:
        if file.metadata.num_rows != items:
            raise ValueError(f"{ITEMS} has {file.metadata.num_rows} items")
        table = file.read()
    if table.num_rows != items or table.schema.field("gain").type != pa.float32() or table["gain"].null_count:
        raise ValueError(f"{ITEMS} has {table.num_rows} items, or other gains than numbers of type float")
    return table


def read_lists(table: pa.Table, dims: int) -> Csr:
    """The rows of the columns `columns` and `values`.

    Raises:
        KeyError, ValueError, pa.ArrowException: the table has others.
    """
    for name, kinds in (("columns", (column_type(dims),)), ("values", tuple(_ARROW_VALUES.values()))):
        lists = table[name]
        if not pa.types.is_list(lists.type) or lists.type.value_type not in kinds or lists.null_count:
            raise ValueError(f"its {name} are {lists.type}, or some are missing")
    one, other = (pc.list_value_length(table[name]) for name in ("columns", "values"))
    if not one.equals(other):
        raise ValueError("its rows have more columns than values, or fewer")
    lengths = np.concatenate([pc.list_value_length(chunk).to_numpy() for chunk in table["columns"].chunks])
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), _flat(table["columns"]), _flat(table["values"])


def _flat(lists: pa.ChunkedArray) -> np.ndarray:
    """The entries of all rows; piece by piece, as one Arrow list array ends at 2^31 entries."""
    return np.concatenate([chunk.flatten().to_numpy() for chunk in lists.chunks])
