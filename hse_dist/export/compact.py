"""The matrix of an export in one of the layouts of `sizes.py`.

In: blocks of rows. Out: a file an array, and the `Storage` that says what they are; and back. Sizes follow from facts
that only all rows together have, so columns and values wait in two plain files until these are known; one piece of the
matrix is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import numpy as np

from hse_dist.export.layouts import BYTES_AT_A_TIME, Csr, Rows, decode, encode, parts
from hse_dist.export.npy import open_array, write_arrays
from hse_dist.export.sizes import LAYOUTS, WIDTHS, Facts, Layout, Storage, choose, unsigned

ENTRIES_AT_A_TIME = 2**20


class CompactWriter:
    """Context manager; the files exist after it, which an exception inside the block leaves out.

    Args:
        layout: `smallest` takes the one with the fewest bytes; bits of a code and columns of a block are always those
            with the fewest.

    Attributes:
        storage: how the matrix was stored; known after the block.
    """

    storage: Storage

    def __init__(self, folder: Path, dims: int, value_type: str, layout: Layout | Literal["smallest"]) -> None:
        self._folder, self._dims = folder, dims
        self._types = {"columns": np.dtype(f"<u{unsigned(dims)}"), "values": np.dtype(value_type).newbyteorder("<")}
        self._layouts = LAYOUTS if layout == "smallest" else (layout,)
        self._waiting = {name: folder / f".{name}" for name in self._types}
        self._files: dict[str, BinaryIO] = {}
        self._lengths = [np.zeros(0, np.int64)]
        self._facts = Facts.of(dims, *(np.zeros(0, np.int64),) * 2)

    def __enter__(self) -> Self:
        self._files = {name: path.open("wb") for name, path in self._waiting.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for file in self._files.values():
                file.close()
            if kind is None:
                self._write()
        finally:
            for path in self._waiting.values():
                path.unlink(missing_ok=True)

    def add(self, lengths: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        """The next rows: int64 lengths, columns rising in each row, values that the value type holds."""
        self._lengths.append(lengths)
        self._facts += Facts.of(self._dims, lengths, columns)
        for name, numbers in (("columns", columns), ("values", values)):
            self._files[name].write(numbers.astype(self._types[name], copy=False).tobytes())

    def _write(self) -> None:
        self.storage = choose(self._facts, self._types["values"].itemsize, self._layouts)
        write_arrays(self._folder, parts(self.storage), encode(self.storage, self._pieces()))

    def _pieces(self) -> Iterator[Rows]:
        lengths = np.concatenate(self._lengths)
        with self._waiting["columns"].open("rb") as columns, self._waiting["values"].open("rb") as values:
            for first, last in _ranges(lengths, self._most_rows()):
                count = int(lengths[first:last].sum())
                read = np.fromfile(columns, self._types["columns"], count).astype(np.int64)
                yield Rows(lengths[first:last], read, np.fromfile(values, self._types["values"], count))

    def _most_rows(self) -> int:
        """Of a piece: layouts that write something for every column take more than live entries."""
        line = {"bitmap": -(-self._dims // 8), "ell": 16 * self.storage.longest}.get(self.storage.layout, 1)
        return max(1, BYTES_AT_A_TIME // max(line, 1))


def _ranges(lengths: np.ndarray, most_rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows with at most `ENTRIES_AT_A_TIME` live entries, or of one row that has more."""
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = ends[first] - lengths[first]
        last = int(np.searchsorted(ends, before + ENTRIES_AT_A_TIME, side="right"))
        last = min(max(last, first + 1), first + most_rows)
        yield first, last
        first = last


def array_files(storage: Storage) -> tuple[str, ...]:
    """Names of the files."""
    return tuple(f"{name}.npy" for name in parts(storage))


def describe(storage: Storage) -> dict[str, Any]:
    """For the manifest."""
    return {**asdict(storage), "bytes": storage.bytes}


def read_storage(described: object) -> Storage:
    """What `describe` gave.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(described, dict):
        raise ValueError("its storage is not described")
    layout = described.get("layout")
    sizes = {name: described.get(name) for name in Storage.__dataclass_fields__ if name != "layout"}
    whole = {name: size for name, size in sizes.items() if type(size) is int and 0 <= size < 2**62}
    if layout not in LAYOUTS or len(whole) < len(sizes):
        raise ValueError("its storage is not one that this program reads")
    storage = Storage(layout, **whole)
    fits = {"delta": range(1, 33), "block": WIDTHS}.get(layout, (0,))
    if storage.parameter not in fits or storage.value_bytes not in (2, 4):
        raise ValueError("its storage is not one that this program reads")
    return storage


def read_matrix(folder: Path, storage: Storage) -> Csr:
    """The rows, columns as they come, not yet checked.

    Raises:
        OSError: a file cannot be read. ValueError: the files do not fit the storage or one another; names the file.
    """
    arrays = {name: open_array(folder, name, part) for name, part in parts(storage).items()}
    return decode(storage, arrays)
