"""The format `mapped`: an export that answers from its files as they are, mapped into memory.

In: checked blocks of rows. Out: the arrays that the kernels take, a file each, and what queries would otherwise build
first; and back, without a copy.

* `items.arrow`: an Arrow file with item and gain; `order.npy`: the rows by rising id.
* `offsets.npy`, `columns.npy`, `values.npy`: the matrix as CSR, int32 and float32.
* Where lists are long, the index of `postings.py`: `ends`, `postings`, `block_ends`, `tops`, `scales`. Else the
  matrix by
  columns, whose lists are read whole: `column_ends`, `column_rows`, `column_values`.

So it has two to three times the bytes of a compact format; processes that serve the same export share them, and pages
that no query needs are not read. The index is made in memory: 4 bytes a live entry, or 8 by columns.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from hse_dist.errors import ExportError
from hse_dist.export.ids import order_of
from hse_dist.export.npy import HEADER_BYTES, Part, open_array
from hse_dist.export.postings import RANGE, Postings, blocks_of, build, pays
from hse_dist.files import refuse_devices

TABLE, ORDER = "items.arrow", "order.npy"
MOST_LIVE = 2**31 - 1
"""Entries that int32 offsets reach; kernels index columns by int32 too."""
_INDEX = ("ends", "postings", "block_ends", "tops", "scales")
_BY_COLUMN = ("column_ends", "column_rows", "column_values")


def mapped_files(storage: dict[str, Any]) -> tuple[str, ...]:
    """Names of the files."""
    return (TABLE, *(f"{name}.npy" for name in _parts(storage)))


def _parts(storage: dict[str, Any]) -> dict[str, Part]:
    items, dims, live, lists = (storage[name] for name in ("items", "dims", "live", "lists"))
    parts = {
        "offsets": Part("<i4", (items + 1,)),
        "columns": Part("<i4", (live,)),
        "values": Part("<f4", (live,)),
        "order": Part("<i4", (items,)),
    }
    if lists:
        ends = Part("<i8", (lists + 1,))
        blocks = Part("<u2", (storage["blocks"],))
        index = (ends, Part("<u4", (live,)), ends, blocks, Part("<f4", (dims,)))
        return parts | dict(zip(_INDEX, index, strict=True))
    turned = (Part("<i4", (dims + 1,)), Part("<i4", (live,)), Part("<f4", (live,)))
    return parts | dict(zip(_BY_COLUMN, turned, strict=True))


def read_description(described: object, items: int, dims: int, live: int) -> dict[str, Any]:
    """The manifest's words on the files.

    Raises:
        ValueError: they are not of this matrix.
    """
    if not isinstance(described, dict) or described.get("layout") != "mapped":
        raise ValueError("its storage is not described")
    storage = {"layout": "mapped", "items": items, "dims": dims, "live": live}
    for name in ("lists", "blocks"):
        size = described.get(name)
        if type(size) is not int or not 0 <= size < 2**40:
            raise ValueError("its storage is not one that this program reads")
        storage[name] = size
    if live > MOST_LIVE or described != storage or storage["lists"] not in (0, _lists(items, dims)):
        raise ValueError("its storage has another shape")
    return storage


def _lists(items: int, dims: int) -> int:
    return -(-items // RANGE) * dims


class MappedWriter:
    """Context manager; the files exist after it, which an exception inside the block leaves out.

    Attributes:
        storage: what `read_description` takes; known after the block.
    """

    storage: dict[str, Any]

    def __init__(self, folder: Path, dims: int, ids: pa.DataType) -> None:
        self._folder, self._dims, self._type = folder, dims, ids
        self._ids: list[pa.Array] = []
        self._gains, self._lengths = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> Self:
        self._files = {name: (self._folder / f"{name}.npy").open("wb") for name in ("columns", "values")}
        for file in self._files.values():
            file.write(bytes(HEADER_BYTES))  # is written when the number of entries is known
        return self

    def add(
        self, ids: pa.Array, gains: np.ndarray, lengths: np.ndarray, columns: np.ndarray, values: np.ndarray
    ) -> None:
        """The next items."""
        self._ids.append(ids)
        self._gains.append(gains)
        self._lengths.append(lengths)
        for name, numbers, kind in (("columns", columns, "<i4"), ("values", values, "<f4")):
            self._files[name].write(numbers.astype(kind).tobytes())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))])
        for name, file in self._files.items():
            file.seek(0)
            part = Part("<i4" if name == "columns" else "<f4", (int(offsets[-1]),))
            _header(file, part)
            file.close()
        if kind is None:
            self._write(offsets)

    def _write(self, offsets: np.ndarray) -> None:
        items, live = len(offsets) - 1, int(offsets[-1])
        if live > MOST_LIVE:
            raise ExportError(
                f"{live} live entries are more than the format mapped holds ({MOST_LIVE}).",
                cause="Choose another format.",
                setting="export.format",
                value="mapped",
            )
        ids, gains = pa.chunked_array(self._ids, self._type).combine_chunks(), np.concatenate(self._gains)
        table = pa.table({"item": ids, "gain": pa.array(gains, pa.float32())})
        with pa.OSFile(str(self._folder / TABLE), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=max(items, 1))
        read = {name: open_array(self._folder, name, Part(kind, (live,)))
                for name, kind in (("columns", "<i4"), ("values", "<f4"))}  # fmt: skip
        matrix = _csr(offsets, read["columns"], read["values"], (items, self._dims))
        found: dict[str, np.ndarray] = {"offsets": offsets, "order": order_of(ids)}
        if pays(matrix):
            index = build(matrix, gains)
            found |= {name: getattr(index, name) for name in _INDEX}
        else:
            turned = matrix.T.tocsr()
            found |= dict(zip(_BY_COLUMN, (turned.indptr, turned.indices, turned.data), strict=True))
        lists = len(found["ends"]) - 1 if "ends" in found else 0
        blocks = len(found["tops"]) if lists else 0
        self.storage = {"layout": "mapped", "items": items, "dims": self._dims, "live": live}
        self.storage |= {"lists": lists, "blocks": blocks}
        for name, part in _parts(self.storage).items():
            if name in found:
                with (self._folder / f"{name}.npy").open("wb") as out:
                    _header(out, part)
                    out.write(np.ascontiguousarray(found[name], part.dtype).data)


def _header(file: BinaryIO, part: Part) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": part.dtype, "fortran_order": False, "shape": part.shape})


def _csr(offsets: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """Of arrays that are checked, without a copy."""
    matrix = sp.csr_matrix((values, columns, offsets.astype(np.int32, copy=False)), shape=shape, copy=False)
    matrix.has_canonical_format = True
    return matrix


def read_table(folder: Path, items: int) -> tuple[pa.Array, np.ndarray]:
    """Ids and gains, mapped.

    Raises:
        OSError, ValueError, pa.ArrowException: the file cannot be read, or holds something else.
    """
    refuse_devices(folder / TABLE)
    with pa.memory_map(str(folder / TABLE)) as file:
        table = pa.ipc.open_file(file).read_all()
    if table.num_rows != items or table.column_names != ["item", "gain"] or table["item"].num_chunks != 1:
        raise ValueError(f"{TABLE} has {table.num_rows} rows of {', '.join(table.column_names)}")
    gains = table["gain"].chunk(0)
    gains.validate(full=True)
    if gains.type != pa.float32() or gains.null_count:
        raise ValueError(f"{TABLE} has other gains than numbers of type float")
    return table["item"].chunk(0), gains.to_numpy()


def read_arrays(folder: Path, storage: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays, mapped, in bounds: kernels index memory by them.

    Raises:
        OSError: a file cannot be read. ValueError: the files do not fit the storage or one another; names the file.
    """
    arrays = {name: open_array(folder, name, part) for name, part in _parts(storage).items()}
    items, dims, live = storage["items"], storage["dims"], storage["live"]
    for name in ("offsets", "ends", "column_ends"):
        if name in arrays:
            ends = arrays[name]
            if ends[0] != 0 or ends[-1] != live or (ends[1:] < ends[:-1]).any():
                raise ValueError(f"{name}.npy does not rise from 0 to the entries")
    for name, most in (("columns", dims), ("order", items), ("column_rows", items)):
        numbers = arrays.get(name, np.zeros(0, np.int32))
        # negative ones are large without a sign
        if len(numbers) and numbers.view(np.uint32).max() >= most:
            raise ValueError(f"{name}.npy has numbers that are out of range")
    if "ends" in arrays and not np.array_equal(blocks_of(arrays["ends"]), arrays["block_ends"]):
        raise ValueError("block_ends.npy does not follow from ends.npy")
    if "ends" in arrays and arrays["block_ends"][-1] != len(arrays["tops"]):
        raise ValueError("tops.npy has other blocks than block_ends.npy")
    if "scales" in arrays and not (arrays["scales"] >= 0).all():
        raise ValueError("scales.npy has negative numbers")
    return arrays


def matrices(
    arrays: dict[str, np.ndarray], items: int, dims: int
) -> tuple[sp.csr_matrix, Postings | None, sp.csr_matrix | None]:
    """The matrix, and the index or the matrix by columns."""
    matrix = _csr(arrays["offsets"], arrays["columns"], arrays["values"], (items, dims))
    if "ends" in arrays:
        return matrix, Postings(*(arrays[name] for name in Postings.__dataclass_fields__)), None
    ends, rows, values = (arrays[name] for name in _BY_COLUMN)
    return matrix, None, _csr(ends, rows, values, (dims, items))
