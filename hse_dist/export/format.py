"""The export: the trained items as files that need nothing of this project to be read.

In: blocks of rows (CSR), item ids and gains. Out: a folder of

* `items.parquet`: item (the raw id), gain (float), columns (list of the smallest unsigned type that holds D), values
  (list of float or halffloat); a row an item, in the order of the rows. This is what `Recommender` reads.
* `items.npz`: the same matrix for `scipy.sparse.load_npz`, float32 `[items, D]` without gains.
* `manifest.json`: version, sizes and sha256 of both files, and the facts of the model.

`value_type = "float16"` rounds the values once, so both files hold the same numbers, but the `.npz` keeps them as
float32: SciPy stores halffloats and then fails on them (`toarray` raises in 1.17). Rows of a model with unit rows are
written at length 1 with gain 1, so a reader needs no settings: score_j = gain_j · (Σ_{i in history} A_i) · A_j.

The folder is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp

from hse_dist.errors import ExportError, NumericError
from hse_dist.export.npz import NpzWriter
from hse_dist.files import new_folder, write_json

KIND = "hse_dist export"
VERSION = 1
FILES = ("items.npz", "items.parquet")
MANIFEST = "manifest.json"

ValueType = Literal["float32", "float16"]
_ARROW_VALUES = {"float32": pa.float32(), "float16": pa.float16()}


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
    """An export in memory: ids `[items]`, matrix float32 CSR `[items, D]`, gains float32 `[items]`, the manifest."""

    item_ids: pa.Array
    matrix: sp.csr_matrix
    gains: np.ndarray
    manifest: dict[str, Any]


def column_type(dims: int) -> pa.DataType:
    """The smallest unsigned type that holds columns `0 … dims - 1`."""
    return next(t for t in (pa.uint8(), pa.uint16(), pa.uint32()) if dims <= 2**t.bit_width)


def write_export(
    folder: str | Path,
    blocks: Iterable[RowBlock],
    *,
    item_ids: pa.Array,
    dims: int,
    row_norm: Literal["unit", "free"],
    value_type: ValueType = "float32",
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write an export, one block in memory at a time.

    Args:
        blocks: the rows `0 … items - 1` in order.
        item_ids: raw ids `[items]`, strings or integers.
        dims: D.
        row_norm: `unit`: rows are brought to length 1 and gains are 1; `free`: both are written as they are.
        extra: further JSON-able facts for the manifest, under `model`.

    Returns:
        `folder`, `items`, `dims`, `live_entries`, `value_type`, `bytes` (all three files).

    Raises:
        ExportError: the folder is something else, cannot be written, or the rows do not fit `item_ids` and `dims`.
        NumericError: a value or gain is not finite; names the row.
    """
    folder = Path(folder)
    _refuse_to_replace(folder)
    try:
        with new_folder(folder) as temporary:
            totals = _write_rows(temporary, blocks, item_ids, dims, row_norm, value_type)
            manifest = {
                "kind": KIND,
                "version": VERSION,
                "items": len(item_ids),
                "dims": dims,
                "value_type": value_type,
                "column_type": str(column_type(dims)),
                "row_norm": row_norm,
                **totals,
                "model": dict(extra or {}),
                "files": {name: _describe(temporary / name) for name in FILES},
            }
            write_json(temporary / MANIFEST, manifest)
            size = sum((temporary / name).stat().st_size for name in (*FILES, MANIFEST))
    except OSError as error:
        raise ExportError(f"The export {folder} cannot be written: {error}.") from error
    return {
        "folder": str(folder),
        "items": len(item_ids),
        "dims": dims,
        "live_entries": totals["live_entries"],
        "value_type": value_type,
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
    except (OSError, ValueError):
        return None
    return content.get("kind") if isinstance(content, dict) else None


def _write_rows(
    folder: Path, blocks: Iterable[RowBlock], item_ids: pa.Array, dims: int, row_norm: str, value_type: ValueType
) -> dict[str, int]:
    schema = pa.schema(
        {
            "item": item_ids.type,
            "gain": pa.float32(),
            "columns": pa.list_(column_type(dims)),
            "values": pa.list_(_ARROW_VALUES[value_type]),
        }
    )
    first = live = negative = 0
    with (
        NpzWriter(folder / "items.npz", dims) as npz,
        # a dictionary packs columns into as few bits as they need; Parquet itself has no integers below 32 bits
        pq.ParquetWriter(
            folder / "items.parquet", schema, compression="zstd", use_dictionary=["columns.list.element"]
        ) as parquet,
    ):
        for block in blocks:
            rows = len(block.offsets) - 1
            if rows == 0:
                continue
            columns, values, gains = _checked(block, first, dims, row_norm, value_type)
            npz.add(np.diff(block.offsets), columns, values)
            lists = [
                pa.ListArray.from_arrays(pa.array(block.offsets - block.offsets[0], pa.int32()), pa.array(flat, kind))
                for flat, kind in (
                    (columns.astype(column_type(dims).to_pandas_dtype()), column_type(dims)),
                    (values.astype(value_type), _ARROW_VALUES[value_type]),
                )
            ]
            ids = item_ids.slice(first, rows)
            if len(ids) < rows:
                raise ExportError(f"The tables have more rows than the vocabulary's {len(item_ids)} items.")
            parquet.write_table(pa.table([ids, pa.array(gains, pa.float32()), *lists], schema=schema))
            first += rows
            live += len(columns)
            negative += int((gains < 0).sum())
        if first < len(item_ids):
            raise ExportError(f"The tables have {first} rows, the vocabulary has {len(item_ids)} items.")
    return {"live_entries": live, "negative_gains": negative}


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
        values = values.astype(value_type).astype(np.float32)
    bad = ~np.isfinite(gains)
    bad[owner[~np.isfinite(values)]] = True
    if bad.any():
        raise NumericError(
            f"A value or the gain of item row {first + int(np.argmax(bad))} is not finite as {value_type}.",
            cause="Training diverged, or the values exceed what float16 holds (65 504).",
        )
    return columns, values, gains


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def load_export(folder: str | Path) -> Export:
    """Read an export after checking its manifest and the size and sha256 of its files.

    Raises:
        ExportError: the folder is missing, of another version, incomplete or damaged.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    for name in FILES:
        try:
            found = _describe(folder / name)
        except OSError as error:
            raise ExportError(f"The export {folder} lacks {name}: {error}.", cause="Export again.") from None
        if found != manifest["files"].get(name):
            raise ExportError(f"{folder / name} is truncated or changed.", cause="Copy it again, or export again.")
    try:
        table = pq.read_table(folder / "items.parquet", partitioning=None)
        item_ids, gains = table["item"].combine_chunks(), table["gain"].to_numpy()
        lengths = np.concatenate([pc.list_value_length(chunk).to_numpy() for chunk in table["columns"].chunks])
        columns = _flat(table["columns"], np.dtype(np.int32) if manifest["dims"] < 2**31 else np.dtype(np.int64))
        values = _flat(table["values"], np.dtype(np.float32))
        if len(columns) != manifest["live_entries"] or (len(columns) and columns.max() >= manifest["dims"]):
            raise ValueError("its live entries are others")
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        matrix = sp.csr_matrix((values, columns, offsets), shape=(manifest["items"], manifest["dims"]))
        matrix.has_canonical_format = True
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ExportError(f"The export {folder} does not fit its manifest: {error}.", cause="Export again.") from None
    return Export(item_ids, matrix, gains, manifest)


def _flat(lists: pa.ChunkedArray, dtype: np.dtype) -> np.ndarray:
    """The entries of all rows; piece by piece, as one Arrow list array ends at 2^31 entries."""
    return np.concatenate([chunk.flatten().to_numpy().astype(dtype) for chunk in lists.chunks])


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"There is no export at {folder} (no {MANIFEST}).") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"The manifest of the export {folder} cannot be read: {error}.") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND or not isinstance(manifest.get("files"), dict):
        raise ExportError(f"{folder / MANIFEST} is not the manifest of an export.")
    if manifest.get("version") != VERSION:
        raise ExportError(
            f"The export {folder} has version {manifest.get('version')}, this program reads version {VERSION}.",
            cause="Export again, or use the program that wrote it.",
        )
    if missing := {"items", "dims", "live_entries"} - manifest.keys():
        raise ExportError(f"The manifest of the export {folder} lacks {', '.join(sorted(missing))}.")
    return manifest
