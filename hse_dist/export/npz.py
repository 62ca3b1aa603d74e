"""A CSR matrix written as `.npz` piece by piece.

In: blocks of rows. Out: a file that `scipy.sparse.load_npz` reads, made without the whole matrix in memory. The arrays
of an `.npz` stand one after the other and say their length first, so entries wait in two plain files until all are
known.

Members are stored, not compressed (values hardly shrink, and reading is a copy), with a fixed date: equal content is
equal bytes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

_PIECE = 2**20
"""Entries copied at a time."""


class NpzWriter:
    """Context manager; the file exists after `close`, which an exception inside the block leaves out.

    Args:
        path: of the `.npz`; two waiting files lie beside it meanwhile.
        columns: number of columns of the matrix.
    """

    def __init__(self, path: Path, columns: int) -> None:
        self._path, self._columns = path, columns
        self._lengths: list[np.ndarray] = []
        self._waiting = {name: path.with_name(f".{path.name}.{name}") for name in ("indices", "data")}
        self._files: dict[str, BinaryIO] = {}

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
        """The next rows: entries a row, int64 columns ascending in each row, float32 values."""
        self._lengths.append(lengths.astype(np.int64))
        self._files["indices"].write(columns.astype("<i8").tobytes())
        self._files["data"].write(values.astype("<f4").tobytes())

    def _write(self) -> None:
        indptr = np.concatenate([np.zeros(1, np.int64), *self._lengths]).cumsum()
        rows, live = len(indptr) - 1, int(indptr[-1])
        # SciPy wants one type for both; it has no unsigned ones
        index = "<i4" if max(live, rows, self._columns) < 2**31 else "<i8"
        with zipfile.ZipFile(self._path, "w", zipfile.ZIP_STORED) as archive:
            _member(archive, "indices", index, (live,), _pieces(self._waiting["indices"], "<i8", index))
            _member(archive, "indptr", index, (rows + 1,), [indptr.astype(index).tobytes()])
            _member(archive, "format", "|S3", (), [b"csr"])
            _member(archive, "shape", "<i8", (2,), [np.array([rows, self._columns], "<i8").tobytes()])
            _member(archive, "data", "<f4", (live,), _pieces(self._waiting["data"], "<f4", "<f4"))


def _pieces(path: Path, source: str, target: str) -> Iterator[bytes]:
    with path.open("rb") as file:
        while len(piece := np.fromfile(file, source, _PIECE)):
            yield piece.astype(target).tobytes()


def _member(
    archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...], pieces: Iterator[bytes] | list[bytes]
) -> None:
    entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    with archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        for piece in pieces:
            file.write(piece)
