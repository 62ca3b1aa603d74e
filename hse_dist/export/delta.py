"""A delta: the rows that changed since an export.

In: blocks of all rows as for an export, and the export that they are compared with. Out: a folder with the rows whose
id, gain, columns or values are others, or which are new, and a manifest; and from that export and the folder the whole
new export, bit by bit.

* `items.parquet`: row, item, gain, columns and values of each of these rows.
* `manifest.json`: `base`, the content of the export that it belongs to, and `content`, that of the one that it makes.
  It is refused on any other, whatever the format; and what it makes is held to `content`.

Rows may change their item (a freed row that is used again), and there may be more or fewer of them than before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
from hse_dist.export.content import Content
from hse_dist.export.format import Export, ValueType
from hse_dist.export.rows import RowBlock, Rows
from hse_dist.export.tables import ITEMS, ItemsWriter, list_fields, lists_of, read_items, read_lists
from hse_dist.files import new_folder, write_json

KIND = "hse_dist delta"
VERSION = 1
FACTS = ("items", "dims", "value_type", "column_type", "row_norm", "user_entries", "live_entries", "negative_gains")
"""Of the export that it makes."""


@dataclass(frozen=True)
class Delta:
    """Rows of an export, rising, with ids, gains and a matrix of their own; the manifest."""

    rows: np.ndarray
    item_ids: pa.Array
    gains: np.ndarray
    matrix: sp.csr_matrix
    manifest: dict[str, Any]


def write_delta(
    folder: str | Path,
    base: Export,
    blocks: Iterable[RowBlock],
    *,
    item_ids: pa.Array,
    dims: int,
    row_norm: Literal["unit", "free"],
    value_type: ValueType = "float32",
    user_entries: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write what changed since `base`; the arguments are those of `write_export`.

    Returns:
        `folder`, `items`, `changed` (rows that `base` has), `new`, `bytes`.

    Raises:
        ExportError: the folder is something else, cannot be written, the ids are of another type, or `base` has
            features of users. And as `write_export`.
    """
    folder = Path(folder)
    refuse_to_replace(folder, KIND)
    _refuse_features(base)
    if item_ids.type != base.item_ids.type:
        raise ExportError(f"The items are {item_ids.type}, those of the export to compare with {base.item_ids.type}.")
    content = Content(dims, item_ids.type, user_entries)
    rows = Rows(blocks, item_ids, dims, row_norm, value_type, content)
    changed = 0
    try:
        with new_folder(folder) as temporary:
            fields = (pa.field("row", pa.int64()), *list_fields(dims, "float32"))
            with ItemsWriter(temporary, item_ids.type, fields) as items:
                first = 0
                for ids, gains, lengths, columns, values in rows:
                    here = np.flatnonzero(_differ(base, first, ids, gains, lengths, columns, values))
                    changed += int((first + here < len(base.item_ids)).sum())
                    kept = np.repeat(np.isin(np.arange(len(lengths)), here), lengths)
                    lists = lists_of(lengths[here], columns[kept], values[kept], dims, "float32")
                    items.add(ids.take(pa.array(here)), gains[here], (pa.array(first + here), *lists))
                    first += len(lengths)
            facts = (len(item_ids), dims, value_type, fields[1].type.value_type, row_norm, user_entries)
            manifest = dict(zip(FACTS, (*facts, rows.live, rows.negative), strict=True))
            manifest |= {"kind": KIND, "version": VERSION, "base": base.content, "content": content.digest}
            manifest |= {"column_type": str(manifest["column_type"]), "model": dict(extra or {})}
            manifest["changed"] = changed + max(0, len(item_ids) - len(base.item_ids))
            manifest["files"] = {ITEMS: describe_file(temporary / ITEMS)}
            write_json(temporary / MANIFEST, manifest)
            size = sum((temporary / name).stat().st_size for name in (ITEMS, MANIFEST))
    except OSError as error:
        raise ExportError(f"The delta {folder} cannot be written: {error}.") from error
    new = manifest["changed"] - changed
    return {"folder": str(folder), "items": len(item_ids), "changed": changed, "new": new, "bytes": size}


def _refuse_features(base: Export) -> None:
    """Raises ExportError: rows of features are not compared yet."""
    if base.features is not None:
        names = ", ".join(base.features.names)
        raise ExportError(f"An export with features of users ({names}) takes no delta.", cause="Export it anew.")


def _differ(
    base: Export, first: int, ids: pa.Array, gains: np.ndarray, lengths: np.ndarray, columns: np.ndarray,
    values: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Which rows from `first` on are not what `base` has there, bool."""
    differ = np.ones(len(lengths), bool)
    both = max(0, min(len(lengths), len(base.item_ids) - first))
    if not both:
        return differ
    offsets = base.matrix.indptr[first : first + both + 1].astype(np.int64)
    differ[:both] = np.diff(offsets) != lengths[:both]
    differ[:both] |= base.gains[first : first + both].view(np.int32) != gains[:both].view(np.int32)
    differ[:both] |= ~pc.equal(base.item_ids.slice(first, both), ids.slice(0, both)).to_numpy(zero_copy_only=False)
    # entries are compared where rows have equally many
    same = np.flatnonzero(~differ[:both])
    ends = np.cumsum(lengths)
    counts = lengths[same]
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    old, new = (np.repeat(starts, counts) + within for starts in (offsets[same], (ends - lengths)[same]))
    other = base.matrix.indices[old] != columns[new]
    other |= base.matrix.data[old].view(np.int32) != values[new].astype(np.float32).view(np.int32)
    differ[same] |= np.bincount(np.repeat(np.arange(len(same)), counts), other, minlength=len(same)) > 0
    return differ


def load_delta(folder: str | Path) -> Delta:
    """Read a delta after checking its manifest and its file.

    Raises:
        ExportError: the folder is missing, something else, of another version, or damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, KIND, VERSION, {*FACTS, "base", "content", "changed"})
    items, count = manifest["items"], manifest["changed"]
    if type(count) is not int or not 0 <= count <= items:
        raise ExportError(f"The manifest of the delta {folder} has changed = {count!r}.")
    check_files(folder, (ITEMS,), manifest["files"], verify=True)
    try:
        table = read_items(folder, count)
        rows = table["row"].combine_chunks().cast(pa.int64()).to_numpy() if count else np.zeros(0, np.int64)
        if len(rows) and (rows[0] < 0 or rows[-1] >= items or (np.diff(rows) <= 0).any()):
            raise ValueError("its rows do not rise, or are out of range")
        offsets, columns, values = np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)
        if count:
            offsets, columns, values = read_lists(table, manifest["dims"])
        matrix = check_matrix(offsets, columns, values, {**manifest, "items": count, "live_entries": len(columns)})
        ids = check_ids(table["item"].combine_chunks())
        return Delta(rows, ids, check_numbers(table["gain"].to_numpy()), matrix, manifest)
    except (OSError, ValueError, LookupError, TypeError, OverflowError, pa.ArrowException) as error:
        raise ExportError(f"The delta {folder} does not fit its manifest: {error}.", cause="Export it again.") from None


def apply_delta(export: Export, delta: Delta) -> Export:
    """The export that the delta makes of `export`, in memory.

    Raises:
        ExportError: the delta belongs to another export, or makes something else than it says; or the export has
            features of users.
    """
    _refuse_features(export)
    manifest = delta.manifest
    if manifest["base"] != export.content:
        raise ExportError(
            f"The delta is of the export {str(manifest['base'])[:12]}, this one is {export.content[:12]}.",
            cause="Apply the deltas since this export in their order, or export anew.",
        )
    items, before = manifest["items"], len(export.item_ids)
    gone = delta.rows[np.searchsorted(delta.rows, before) :]
    if not np.array_equal(gone, np.arange(before, items)) or delta.item_ids.type != export.item_ids.type:
        raise ExportError("The delta lacks rows that are new, or its items are of another type.")
    lengths = np.zeros(items, np.int64)
    lengths[: min(before, items)] = np.diff(export.matrix.indptr)[:items]
    lengths[delta.rows] = np.diff(delta.matrix.indptr)
    gains = np.ones(items, np.float32)
    gains[: min(before, items)] = export.gains[:items]
    gains[delta.rows] = delta.gains
    source = np.arange(items)
    source[delta.rows] = before + np.arange(len(delta.rows))
    ids = pa.concat_arrays([export.item_ids, delta.item_ids]).take(pa.array(source))
    columns, values = (_spliced(export.matrix, delta, items, name) for name in ("indices", "data"))
    try:
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        matrix = check_matrix(offsets, columns, values, manifest)
        made = Export(check_ids(ids), matrix, gains, {**export.manifest, **_facts(manifest)})
        if replace(made, manifest={**made.manifest, "content": None}).content != manifest["content"]:
            raise ValueError("its checksum is another")
    except ValueError as error:
        raise ExportError(f"The delta makes another export than it says: {error}.", cause="Export it again.") from None
    return made


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the new export's manifest has from the delta's; it has no files."""
    return {**{name: manifest[name] for name in (*FACTS, "content", "model")}, "files": {}, "storage": None}


def _spliced(matrix: sp.csr_matrix, delta: Delta, items: int, name: str) -> np.ndarray:
    """The entries of all rows in order: runs of rows that stay, and between them rows that changed."""
    old, new = getattr(matrix, name), getattr(delta.matrix, name)
    before, rows = matrix.shape[0], delta.rows
    # runs of changed rows that follow each other
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    ends = np.append(starts, len(rows))[1:]
    pieces, row = [old[:0]], 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        pieces.append(old[matrix.indptr[min(row, before)] : matrix.indptr[min(int(rows[start]), before)]])
        pieces.append(new[delta.matrix.indptr[start] : delta.matrix.indptr[end]])
        row = int(rows[end - 1]) + 1
    pieces.append(old[matrix.indptr[min(row, before)] : matrix.indptr[min(items, before)]])
    return np.concatenate(pieces)
