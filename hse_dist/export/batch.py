"""Recommendations for a file of histories.

In: an export folder and a Parquet file with the columns `user` and `items` (a list of raw item ids), and perhaps some
with the names of the export's features of users (a raw value or a list). Out: a Parquet file with `user`, `items` and
`scores` (lists, best first), a row a user in the same order, whole or not there; and a summary.

The histories are streamed in blocks of users; no Python object is made for a user or an item.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hse_dist.errors import ConfigError, DataError, ExportError
from hse_dist.export.context import Context
from hse_dist.export.recommender import Recommender
from hse_dist.files import new_file
from hse_dist.progress import Meter, telling

NAMED = 10
"""Unknown items that the summary names."""


def recommend_file(
    export_folder: str | Path, histories: str | Path, output: str | Path, k: int = 10, block: int = 8192
) -> dict[str, Any]:
    """Recommend at most `k` items to each user of a file; a user of whom nothing is known gets an empty list.

    Args:
        block: users read at a time.

    Returns:
        `output`, `users`, `recommended` (users with a list that is not empty), `unknown` (entries of histories that are
        not in the export, null ones included), `unknown_items` (the first few of them), `features` (columns that were
        used), `unknown_values` (entries of these that are not in the export), `seconds`.

    Raises:
        ConfigError: k or block is not positive.
        DataError: the histories cannot be read or have other columns.
        ExportError: the export is unfit, or the output cannot be written.
    """
    if k < 1 or block < 1:
        raise ConfigError(f"k = {k} and block = {block} must both be at least 1.")
    started = time.perf_counter()
    histories, output = Path(histories), Path(output)
    if histories.resolve() == output.resolve():
        raise DataError(f"The histories {histories} would be replaced by the recommendations.")
    recommender = Recommender.load(export_folder)
    summary = _Summary()
    with (
        _open(histories, recommender.item_ids.type) as source,
        _writing(output) as temporary,
        tempfile.TemporaryDirectory() as notes,
        telling("recommend", Path(notes) / "recommend", "users") as path,
    ):
        meter, users = Meter(path), source.metadata.num_rows
        schema = pa.schema(
            {
                "user": source.schema_arrow.field("user").type,
                "items": pa.list_(recommender.item_ids.type),
                "scores": pa.list_(pa.float32()),
            }
        )
        schema_of = source.schema_arrow
        features = [one for one in recommender.features if one != "items" and schema_of.get_field_index(one) >= 0]
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for batch in _batches(source, histories, block, features):
                context = _context(recommender, batch, features, summary, histories)
                lists = _recommend(recommender, batch.column("items"), k, summary, histories, context)
                writer.write_table(pa.table([batch.column("user"), *lists], schema=schema))
                meter(summary.users / users, summary.users)
    return {
        "output": str(output),
        "users": summary.users,
        "recommended": summary.recommended,
        "unknown": summary.unknown,
        "unknown_items": list(summary.names),
        "features": features,
        "unknown_values": summary.unknown_values,
        "seconds": time.perf_counter() - started,
    }


class _Summary:
    def __init__(self) -> None:
        self.users = self.recommended = self.unknown = self.unknown_values = 0
        self.names: dict[Any, None] = {}

    def add_unknown(self, ids: pa.Array) -> None:
        self.unknown += len(ids)
        for name in ids.unique().to_pylist() if len(self.names) < NAMED else ():
            if len(self.names) < NAMED:
                self.names[name] = None


def _context(
    recommender: Recommender, batch: pa.RecordBatch, features: list[str], summary: _Summary, path: Path
) -> Context:
    """What else is known of a block of users."""
    columns = {}
    for name in features:
        given, owner = batch.column(name), np.arange(batch.num_rows)
        if _is_list(given.type):
            owner = np.repeat(owner, pc.list_value_length(given).fill_null(0).to_numpy())
            given = given.flatten()
        else:
            there = given.is_valid()
            owner, given = owner[there.to_numpy(zero_copy_only=False)], given.filter(there)
        columns[name] = owner, _cast(given, recommender.contexts.type_of(name), path, name)
    context, unknown = recommender.contexts.of_values(batch.num_rows, columns)
    summary.unknown_values += unknown
    return context


def _recommend(
    recommender: Recommender, lists: pa.Array, k: int, summary: _Summary, path: Path, context: Context
) -> tuple[pa.ListArray, pa.ListArray]:
    """Items and scores of a block of histories; a null history counts as an empty one."""
    ids = _cast(lists.flatten(), recommender.item_ids.type, path, "items")
    owner = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).fill_null(0).to_numpy())
    rows = recommender.rows_of(ids)
    known = rows >= 0
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[known], minlength=len(lists)))])
    top, scores = recommender.recommend_rows(offsets, rows[known], k, context=context)
    some = top >= 0
    ends = pa.array(np.concatenate([[0], np.cumsum(some.sum(axis=1))]), pa.int32())
    summary.users += len(lists)
    summary.recommended += int(some.any(axis=1).sum())
    summary.add_unknown(ids.filter(pa.array(~known)))
    items = recommender.item_ids.take(pa.array(top[some]))
    return pa.ListArray.from_arrays(ends, items), pa.ListArray.from_arrays(ends, pa.array(scores[some]))


def _cast(ids: pa.Array, kind: pa.DataType, path: Path, what: str) -> pa.Array:
    try:
        return ids.cast(kind)
    except pa.ArrowException as error:
        raise DataError(
            f"The {what} of the histories {path} are {ids.type}, those of the export {kind}.", cause=f"{error}."
        ) from None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


@contextmanager
def _open(path: Path, kind: pa.DataType) -> Iterator[pq.ParquetFile]:
    """The histories, if their columns fit."""
    try:
        source = pq.ParquetFile(path)
        schema = source.schema_arrow
    except FileNotFoundError:
        raise DataError(f"There is no file of histories {path}.") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"The histories {path} are not a Parquet file that can be read: {error}.") from None
    with source:
        if missing := [name for name in ("user", "items") if schema.get_field_index(name) < 0]:
            raise DataError(
                f"The histories {path} lack {' and '.join(missing)}.", cause=f"There is {', '.join(schema.names)}."
            )
        items = schema.field("items").type
        if not _is_list(items):
            raise DataError(f"The column items of {path} is {items}.", cause=f"It must be a list of {kind}.")
        yield source


def _batches(source: pq.ParquetFile, path: Path, block: int, features: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from source.iter_batches(block, columns=list(dict.fromkeys(["user", "items", *features])))
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"The histories {path} cannot be read: {error}.", cause="The file is damaged.") from None


@contextmanager
def _writing(output: Path) -> Iterator[Path]:
    try:
        with new_file(output) as temporary:
            yield temporary
    except OSError as error:
        raise ExportError(f"The recommendations cannot be written to {output}: {error}.") from error
