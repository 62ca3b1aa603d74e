"""The export: the trained items as files.

In: blocks of rows (CSR), item ids and gains. Out: a folder of

* `items.parquet`: item (the raw id) and gain (float), a row an item, in the order of the rows.
* the matrix, in one of three ways:
    * `parquet`, for any program: columns (list of the smallest unsigned type that holds D) and values (list of float or
      halffloat) in `items.parquet`, and the same matrix without gains for `scipy.sparse.load_npz`, float32
      `[items, D]`, in `items.npz`;
    * one of the layouts of `sizes.py`, small and of known size, as `.npy` files that `layouts.py` describes;
    * `mapped`, large and with an index, which answers from its files as they are (`mapped.py`).
* `feature-NAME.parquet` for each feature of users (`features.py`); rows of items hold those of their features.
* `manifest.json`: version, sizes and sha256 of the files, and the facts of the model.

`value_type = "float16"` rounds the values once, so all files hold the same numbers, but the `.npz` keeps them as
float32: SciPy stores halffloats and then fails on them (`toarray` raises in 1.17). Rows of a model with unit rows are
written at length 1 with gain 1, so a reader needs no settings: score_j = gain_j · (Σ_{i in history} A_i) · A_j, with
the rows of the user's features in the sum where there are any. If the manifest's `user_entries` is a number, only so
many entries of the sum count, the strongest ones.

The folder is whole or not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from hse_dist.errors import ExportError
from hse_dist.export.checks import (
    MANIFEST,
    check_files,
    check_ids,
    check_matrix,
    check_numbers,
    describe_file,
    read_manifest,
    refuse_to_replace,
)
from hse_dist.export.compact import CompactWriter, array_files, describe, read_matrix, read_storage
from hse_dist.export.content import Content, with_features
from hse_dist.export.features import (
    Source,
    UserFeatures,
    described_features,
    feature_files,
    read_features,
    write_features,
)
from hse_dist.export.mapped import MappedWriter, mapped_files, matrices, read_arrays, read_description, read_table
from hse_dist.export.postings import Postings
from hse_dist.export.rows import RowBlock as RowBlock
from hse_dist.export.rows import Rows
from hse_dist.export.sizes import LAYOUTS, Layout, Storage
from hse_dist.export.tables import ITEMS, NPZ, ItemsWriter, OpenWriter, column_type, read_items, read_lists
from hse_dist.files import new_folder, write_json

KIND = "hse_dist export"
VERSION = 2
TRIES = 5
"""To read an export that is replaced meanwhile."""

ValueType = Literal["float32", "float16"]
Format = Literal["parquet", "smallest", "mapped"] | Layout
Stored = Storage | dict[str, Any] | None
"""A compact layout, the description of `mapped`, or None: `parquet`."""


@dataclass(frozen=True)
class Export:
    """An export in memory: ids `[items]`, matrix float32 CSR `[items, D]`, gains float32 `[items]`, the manifest.

    Attributes:
        postings, by_column, order: the index, the matrix by columns, and the rows by rising id, where the export has
            them: the format `mapped` has the last, and one of the others.
        features: of users; None: the model has none.
    """

    item_ids: pa.Array
    matrix: sp.csr_matrix
    gains: np.ndarray
    manifest: dict[str, Any]
    postings: Postings | None = None
    by_column: sp.csr_matrix | None = None
    order: np.ndarray | None = None
    features: UserFeatures | None = None

    @cached_property
    def content(self) -> str:
        """What names the numbers and ids, whatever the format; exports of older programs do not say it."""
        said = self.manifest.get("content")
        if isinstance(said, str):
            return said
        found = Content(self.matrix.shape[1], self.item_ids.type, self.manifest.get("user_entries"))
        lengths = np.diff(self.matrix.indptr)
        found.add(self.item_ids, self.gains, lengths, self.matrix.indices, self.matrix.data)
        return with_features(found.digest, self.features.digests() if self.features else {})


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
    features: Mapping[str, Source] | None = None,
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
        features: of users, by name: their rows are written as they are, behind those of the items and in this order.
        extra: further JSON-able facts for the manifest, under `model`.

    Returns:
        `folder`, `items`, `dims`, `live_entries` (of items), `value_type`, `format`, `bytes` (all files).

    Raises:
        ExportError: the folder is something else, cannot be written, or the rows do not fit `item_ids` and `dims`.
        NumericError: a value or gain is not finite; names the row.
    """
    folder = Path(folder)
    refuse_to_replace(folder, KIND)
    try:
        with new_folder(folder) as temporary:
            content = Content(dims, item_ids.type, user_entries)
            rows = Rows(blocks, item_ids, dims, row_norm, value_type, content)
            storage = _write(temporary, rows, form)
            written = write_features(temporary, features or {}, dims, value_type)
            files = (*_files(storage), *feature_files(written))
            manifest = {
                **_facts(rows, storage, form),
                "user_entries": user_entries,
                "content": with_features(content.digest, {name: one.digest for name, one in written.items()}),
                "model": dict(extra or {}),
                "files": {name: describe_file(temporary / name) for name in files},
            }
            if written:
                manifest["features"] = {name: one.described for name, one in written.items()}
            write_json(temporary / MANIFEST, manifest)
            size = sum((temporary / name).stat().st_size for name in (*files, MANIFEST))
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


def _facts(rows: Rows, storage: Stored, form: Format) -> dict[str, Any]:
    """What the manifest says of the items."""
    return {
        "kind": KIND,
        "version": VERSION,
        "items": len(rows.item_ids),
        "dims": rows.dims,
        "value_type": rows.value_type,
        "column_type": str(column_type(rows.dims)),
        "row_norm": rows.row_norm,
        "live_entries": rows.live,
        "negative_gains": rows.negative,
        "format": form if storage is None or isinstance(storage, dict) else storage.layout,
        "storage": describe(storage) if isinstance(storage, Storage) else storage,
    }


def _files(storage: Stored) -> tuple[str, ...]:
    """Names of the items' files beside the manifest."""
    if isinstance(storage, dict):
        return mapped_files(storage)
    return (ITEMS, NPZ) if storage is None else (ITEMS, *array_files(storage))


def item_files(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the items' files of an export that was read, by its manifest."""
    return _files(_read_storage(manifest))


def _write(folder: Path, rows: Rows, form: Format) -> Stored:
    ids = rows.item_ids.type
    if form == "parquet" or form == "mapped":
        writer = OpenWriter(folder, rows.dims, rows.value_type, ids) if form == "parquet" else None
        with writer or MappedWriter(folder, rows.dims, ids) as whole:
            for block in rows:
                whole.add(*block)
        return whole.storage if isinstance(whole, MappedWriter) else None
    with CompactWriter(folder, rows.dims, rows.value_type, form) as matrix, ItemsWriter(folder, ids) as items:
        for part, gains, lengths, columns, values in rows:
            items.add(part, gains)
            matrix.add(lengths, columns, values)
    return matrix.storage


def load_export(folder: str | Path, *, verify: bool = True) -> Export:
    """Read an export after checking its manifest and the size and sha256 of its files.

    Args:
        verify: False leaves out, of the format `mapped` alone, what reads its files whole: checksums, and whether
            numbers are those of an export. What kernels index memory by is checked all the same.

    An export that is replaced meanwhile, by a rename, is read again: files of two of them may have been opened.

    Raises:
        ExportError: the folder is missing, of another version, incomplete or damaged; or its files, checksums or not,
            hold what no export has: compiled kernels index memory by what they say.
    """
    folder = Path(folder)
    for _ in range(TRIES):
        before = _mark(folder)
        try:
            found = _load(folder, verify)
        except ExportError:
            if _mark(folder) == before:
                raise
            continue
        if _mark(folder) == before:
            return found
    raise ExportError(f"The export {folder} was replaced {TRIES} times while it was read.", cause="Try again later.")


def _mark(folder: Path) -> tuple[int, int] | None:
    """Changes when another export takes the folder's place."""
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _load(folder: Path, verify: bool) -> Export:
    manifest = read_manifest(folder, KIND, VERSION, {"items", "dims", "live_entries", "format", "user_entries"})
    if manifest["format"] not in ("parquet", "mapped", *LAYOUTS):
        raise ExportError(f"The export {folder} has the format {manifest['format']}, which this program does not read.")
    try:
        storage, described = _read_storage(manifest), described_features(manifest)
    except ValueError as error:
        raise ExportError(f"The manifest of the export {folder} cannot be used: {error}.") from None
    verify = verify or not isinstance(storage, dict)
    check_files(folder, (*_files(storage), *feature_files(described)), manifest["files"], verify)
    try:
        if isinstance(storage, dict):
            found = _read_mapped(folder, storage, manifest, verify)
        else:
            found = _read_whole(folder, storage, manifest)
        return replace(found, features=read_features(folder, described, manifest["dims"]))
    except (OSError, ValueError, LookupError, TypeError, OverflowError, pa.ArrowException) as error:
        raise ExportError(f"The export {folder} does not fit its manifest: {error}.", cause="Export again.") from None


def _read_storage(manifest: Mapping[str, Any]) -> Stored:
    if manifest["format"] == "parquet":
        return None
    items, dims = manifest["items"], manifest["dims"]
    if manifest["format"] == "mapped":
        return read_description(manifest.get("storage"), items, dims, manifest["live_entries"])
    storage = read_storage(manifest.get("storage"))
    if (storage.rows, storage.dims) != (items, dims):
        raise ValueError("its storage has another shape")
    return storage


def _read_whole(folder: Path, storage: Storage | None, manifest: dict[str, Any]) -> Export:
    table = read_items(folder, manifest["items"])
    item_ids, gains = check_ids(table["item"].combine_chunks()), check_numbers(table["gain"].to_numpy())
    csr = read_lists(table, manifest["dims"]) if storage is None else read_matrix(folder, storage)
    return Export(item_ids, check_matrix(*csr, manifest), gains, manifest)


def _read_mapped(folder: Path, storage: dict[str, Any], manifest: dict[str, Any], verify: bool) -> Export:
    item_ids, gains = read_table(folder, manifest["items"])
    arrays = read_arrays(folder, storage)
    item_ids, gains = check_ids(item_ids, verify), check_numbers(gains)
    matrix, postings, by_column = matrices(arrays, manifest["items"], manifest["dims"])
    if verify:
        check_matrix(matrix.indptr, matrix.indices, matrix.data, manifest)
    return Export(item_ids, matrix, gains, manifest, postings, by_column, arrays["order"])
