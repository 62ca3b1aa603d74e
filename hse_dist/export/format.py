"""The export: the trained items as files.

In: blocks of rows (CSR), item ids and gains. Out: a folder of

* `items.parquet`: item (the raw id) and gain (float), a row an item, in the order of the rows.
* the matrix, in one of two ways:
    * `parquet`, for any program: columns (list of the smallest unsigned type that holds D) and values (list of float or
      halffloat) in `items.parquet`, and the same matrix without gains for `scipy.sparse.load_npz`, float32
      `[items, D]`, in `items.npz`;
    * one of the layouts of `sizes.py`, small and of known size, as `.npy` files that `layouts.py` describes.
* `manifest.json`: version, sizes and sha256 of the files, and the facts of the model.

`value_type = "float16"` rounds the values once, so all files hold the same numbers, but the `.npz` keeps them as
float32: SciPy stores halffloats and then fails on them (`toarray` raises in 1.17). Rows of a model with unit rows are
written at length 1 with gain 1, so a reader needs no settings: score_j = gain_j · (Σ_{i in history} A_i) · A_j. If
the manifest's `user_entries` is a number, only so many entries of the sum count, the strongest ones.

The folder is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from hse_dist.errors import ExportError, NumericError
from hse_dist.export.compact import CompactWriter, array_files, describe, read_matrix, read_storage
from hse_dist.export.content import Content
from hse_dist.export.postings import Postings
from hse_dist.export.sizes import LAYOUTS, Layout, Storage
from hse_dist.export.tables import ITEMS, NPZ, ItemsWriter, OpenWriter, column_type, read_items, read_lists
from hse_dist.files import new_folder, refuse_devices, write_json

KIND = "hse_dist export"
VERSION = 2
MANIFEST = "manifest.json"
MOST_DIMS = 2**24
"""Columns; vectors of D numbers are made for users."""
MOST_ITEMS = 2**31 - 1
MOST_NUMBER = 2.0**30
"""Of values and gains: scores, which are sums of products of three of them, stay finite."""

ValueType = Literal["float32", "float16"]
Format = Literal["parquet", "smallest"] | Layout


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows as CSR: int64 `offsets` `[n + 1]` and `columns` `[L]`, float32 `values` `[L]` and `gains` `[n]`.

    Columns of a row are distinct and in any order. Live entries whose value is 0 are kept.
    """

    offsets: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    gains: np.ndarray


@dataclass(frozen=True)
class Export:
    """An export in memory: ids `[items]`, matrix float32 CSR `[items, D]`, gains float32 `[items]`, the manifest.

    Attributes:
        postings, order: the index, and the rows by rising id, where the export has them.
    """

    item_ids: pa.Array
    matrix: sp.csr_matrix
    gains: np.ndarray
    manifest: dict[str, Any]
    postings: Postings | None = None
    order: np.ndarray | None = None

    @cached_property
    def content(self) -> str:
        """What names the numbers and ids, whatever the format; exports of older programs do not say it."""
        said = self.manifest.get("content")
        if isinstance(said, str):
            return said
        found = Content(self.matrix.shape[1], self.item_ids.type, self.manifest.get("user_entries"))
        lengths = np.diff(self.matrix.indptr)
        found.add(self.item_ids, self.gains, lengths, self.matrix.indices, self.matrix.data)
        return found.digest


def write_export(
    folder: str | Path,
    blocks: Iterable[RowBlock],
    *,
    item_ids: pa.Array,
    dims: int,
    row_norm: Literal["unit", "free"],
    value_type: ValueType = "float32",
    form: Format = "parquet",
    user_entries: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write an export, one block in memory at a time.

    Args:
        blocks: the rows `0 … items - 1` in order.
        item_ids: raw ids `[items]`, strings or integers.
        dims: D.
        row_norm: `unit`: rows are brought to length 1 and gains are 1; `free`: both are written as they are.
        form: how the matrix is stored; `smallest`: the layout with the fewest bytes.
        user_entries: entries of a user's vector that scores see, the strongest ones; None: all.
        extra: further JSON-able facts for the manifest, under `model`.

    Returns:
        `folder`, `items`, `dims`, `live_entries`, `value_type`, `format`, `bytes` (all files).

    Raises:
        ExportError: the folder is something else, cannot be written, or the rows do not fit `item_ids` and `dims`.
        NumericError: a value or gain is not finite; names the row.
    """
    folder = Path(folder)
    _refuse_to_replace(folder)
    try:
        with new_folder(folder) as temporary:
            content = Content(dims, item_ids.type, user_entries)
            rows = _Rows(blocks, item_ids, dims, row_norm, value_type, content)
            storage = _write(temporary, rows, form)
            manifest = {
                "kind": KIND,
                "version": VERSION,
                "items": len(item_ids),
                "dims": dims,
                "value_type": value_type,
                "column_type": str(column_type(dims)),
                "row_norm": row_norm,
                "user_entries": user_entries,
                "live_entries": rows.live,
                "negative_gains": rows.negative,
                "content": content.digest,
                "format": storage.layout if storage else "parquet",
                "storage": describe(storage) if storage else None,
                "model": dict(extra or {}),
                "files": {name: _describe(temporary / name) for name in _files(storage)},
            }
            write_json(temporary / MANIFEST, manifest)
            size = sum((temporary / name).stat().st_size for name in (*_files(storage), MANIFEST))
    except OSError as error:
        raise ExportError(f"The export {folder} cannot be written: {error}.") from error
    return {
        "folder": str(folder),
        "items": len(item_ids),
        "dims": dims,
        "live_entries": rows.live,
        "value_type": value_type,
        "format": manifest["format"],
        "bytes": size,
    }


def _refuse_to_replace(folder: Path) -> None:
    """An export replaces an export; anything else with content in it stays."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ExportError(f"{folder} is a file, not a folder to export to.")
    if any(folder.iterdir()) and _kind(folder / MANIFEST) != KIND:
        raise ExportError(f"The folder {folder} has content that is no export.", cause="Choose an empty or new folder.")


def _kind(manifest: Path) -> object:
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content.get("kind") if isinstance(content, dict) else None


def _files(storage: Storage | None) -> tuple[str, ...]:
    """Names of the files beside the manifest; `storage` is None for `parquet`."""
    return (ITEMS, NPZ) if storage is None else (ITEMS, *array_files(storage))


def _write(folder: Path, rows: _Rows, form: Format) -> Storage | None:
    ids = rows.item_ids.type
    if form == "parquet":
        with OpenWriter(folder, rows.dims, rows.value_type, ids) as both:
            for block in rows:
                both.add(*block)
        return None
    with CompactWriter(folder, rows.dims, rows.value_type, form) as matrix, ItemsWriter(folder, ids) as items:
        for part, gains, lengths, columns, values in rows:
            items.add(part, gains)
            matrix.add(lengths, columns, values)
    return matrix.storage


@dataclass
class _Rows:
    """Blocks as a reader will see them, checked: ids, gains, lengths, columns, values. What was seen is counted."""

    blocks: Iterable[RowBlock]
    item_ids: pa.Array
    dims: int
    row_norm: str
    value_type: ValueType
    content: Content
    live: int = 0
    negative: int = 0

    def __iter__(self) -> Iterator[tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        first = 0
        for block in self.blocks:
            rows = len(block.offsets) - 1
            if rows == 0:
                continue
            columns, values, gains = _checked(block, first, self.dims, self.row_norm, self.value_type)
            ids = self.item_ids.slice(first, rows)
            if len(ids) < rows:
                raise ExportError(f"The tables have more rows than the vocabulary's {len(self.item_ids)} items.")
            self.content.add(ids, gains, np.diff(block.offsets), columns, values)
            yield ids, gains, np.diff(block.offsets), columns, values
            first += rows
            self.live += len(columns)
            self.negative += int((gains < 0).sum())
        if first < len(self.item_ids):
            raise ExportError(f"The tables have {first} rows, the vocabulary has {len(self.item_ids)} items.")


def _checked(
    block: RowBlock, first: int, dims: int, row_norm: str, value_type: ValueType
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns in ascending order a row, values and gains as a reader will see them."""
    owner = np.repeat(np.arange(len(block.offsets) - 1), np.diff(block.offsets))
    order = np.lexsort((block.columns, owner))
    columns, values = block.columns[order], block.values[order].astype(np.float32)
    wrong = (columns < 0) | (columns >= dims)
    wrong[1:] |= (columns[1:] == columns[:-1]) & (owner[1:] == owner[:-1])
    if wrong.any():
        where = int(np.argmax(wrong))
        raise ExportError(
            f"Column {columns[where]} of item row {first + owner[where]} is out of range or there twice (D = {dims})."
        )
    gains = block.gains.astype(np.float32)
    if row_norm == "unit":
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
            f"A value or gain of item row {first + int(np.argmax(bad))} is not finite as {value_type}, or above 2^30.",
            cause="Training diverged, or the values exceed what float16 holds (65 504).",
        )
    return columns, values, gains


def _describe(path: Path) -> dict[str, Any]:
    refuse_devices(path)
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def load_export(folder: str | Path) -> Export:
    """Read an export after checking its manifest and the size and sha256 of its files.

    Raises:
        ExportError: the folder is missing, of another version, incomplete or damaged; or its files, checksums or not,
            hold what no export has: compiled kernels index memory by what they say.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    try:
        storage = None if manifest["format"] == "parquet" else read_storage(manifest.get("storage"))
        if storage is not None and (storage.rows, storage.dims) != (manifest["items"], manifest["dims"]):
            raise ValueError("its storage has another shape")
    except ValueError as error:
        raise ExportError(f"The manifest of the export {folder} cannot be used: {error}.") from None
    for name in _files(storage):
        try:
            found = _describe(folder / name)
        except OSError as error:
            raise ExportError(f"The export {folder} lacks {name}: {error}.", cause="Export again.") from None
        if found != manifest["files"].get(name):
            raise ExportError(f"{folder / name} is truncated or changed.", cause="Copy it again, or export again.")
    try:
        table = read_items(folder, manifest["items"])
        item_ids, gains = _item_ids(table["item"].combine_chunks()), _numbers(table["gain"].to_numpy())
        csr = read_lists(table, manifest["dims"]) if storage is None else read_matrix(folder, storage)
        matrix = _matrix(*csr, manifest)
    except (OSError, ValueError, LookupError, TypeError, OverflowError, pa.ArrowException) as error:
        raise ExportError(f"The export {folder} does not fit its manifest: {error}.", cause="Export again.") from None
    return Export(item_ids, matrix, gains, manifest)


def _item_ids(ids: pa.Array) -> pa.Array:
    ids.validate(full=True)
    if not (pa.types.is_integer(ids.type) or pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise ValueError(f"its ids are {ids.type}")
    if ids.null_count or len(ids.unique()) < len(ids):
        raise ValueError("ids are missing, or there twice")
    return ids


def _numbers(numbers: np.ndarray) -> np.ndarray:
    """Values or gains as float32."""
    numbers = numbers.astype(np.float32)
    if not (np.abs(numbers) <= MOST_NUMBER).all():
        raise ValueError("values or gains are not finite, or above 2^30")
    return numbers


def _matrix(offsets: np.ndarray, columns: np.ndarray, values: np.ndarray, manifest: dict[str, Any]) -> sp.csr_matrix:
    dims, live = manifest["dims"], manifest["live_entries"]
    if len(columns) != live or len(values) != live or (live and not 0 <= columns.min() <= columns.max() < dims):
        raise ValueError("its live entries are others")
    columns = columns.astype(np.int32 if dims < 2**31 else np.int64)
    falls = np.diff(columns) <= 0
    falls[(offsets[1:-1] - 1)[(offsets[1:-1] > 0) & (offsets[1:-1] < live)]] = False  # from one row to another
    if falls.any():
        raise ValueError("the columns of a row do not rise")
    matrix = sp.csr_matrix((_numbers(values), columns, offsets), shape=(manifest["items"], dims))
    matrix.has_canonical_format = True
    return matrix


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        refuse_devices(folder / MANIFEST)
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"There is no export at {folder} (no {MANIFEST}).") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"The manifest of the export {folder} cannot be read: {error}.") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND or not isinstance(manifest.get("files"), dict):
        raise ExportError(f"{folder / MANIFEST} is not the manifest of an export.")
    if manifest.get("version") != VERSION:
        raise ExportError(
            f"The export {folder} has version {manifest.get('version')}, this program reads version {VERSION}.",
            cause="Export again, or use the program that wrote it.",
        )
    if missing := {"items", "dims", "live_entries", "format", "user_entries"} - manifest.keys():
        raise ExportError(f"The manifest of the export {folder} lacks {', '.join(sorted(missing))}.")
    ranges = {"items": (1, MOST_ITEMS), "dims": (1, MOST_DIMS), "live_entries": (0, 2**62), "user_entries": (1, 2**62)}
    for name, (least, most) in ranges.items():
        size = manifest[name]
        if not (type(size) is int and least <= size <= most) and (name, size) != ("user_entries", None):
            raise ExportError(f"The manifest of the export {folder} has {name} = {size!r}.")
    if manifest["format"] not in ("parquet", *LAYOUTS):
        raise ExportError(f"The export {folder} has the format {manifest['format']}, which this program does not read.")
    return manifest
