"""Reads a fragment of a log as normalised batches.

In: a `Fragment`. Out: record batches with the columns of `LogSchema.arrow()`: ids without nulls as int64 or
large_string, the timestamp as int64 (microseconds where the log has dates) or float64. Ratings are used to filter and
then left out. Batches are small and a Parquet row group is read page by page, so that memory depends neither on the
file nor on its row groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hse_dist.config import ColumnNames
from hse_dist.data.formats import block_bytes, open_text
from hse_dist.data.hashing import BUCKET_SEED, hash_ids
from hse_dist.data.schema import Fragment, LogSchema
from hse_dist.data.values import a_line_a_value
from hse_dist.errors import DataError

BATCH_ROWS = 1 << 16


def read(
    fragment: Fragment,
    schema: LogSchema,
    columns: ColumnNames,
    min_rating: float | None,
    *,
    memory: int = 1 << 30,
    seen: Callable[[float], None] = lambda share: None,
) -> Iterator[pa.RecordBatch]:
    """Normalised batches of a fragment.

    Args:
        memory: bytes, of which a quarter may be text that is parsed ahead.
        seen: is told the share of the fragment that has been read before each batch is handed out.

    Raises:
        DataError: a damaged file, a value of another type than the column's, null ids or timestamps.
    """
    target, min_rating = schema.arrow(), None if fragment.kept else min_rating
    batches = _raw(fragment, _needed(fragment, target, min_rating), memory)
    if fragment.valued:
        batches, fragment = _valued(batches, fragment), _by_role(fragment)
    while True:
        with _reading(fragment):
            found = next(batches, None)
        if found is None:
            return
        batch, share = found
        normal = [_normal(batch, fragment, field, getattr(columns, field.name)) for field in target]
        result = pa.RecordBatch.from_arrays(normal, schema=target)
        if min_rating is not None:
            result = result.filter(pc.greater_equal(_rating(batch, fragment, columns.rating or ""), min_rating))
        if result.num_rows:
            seen(share)
            yield result


def values_a_line(fragment: Fragment, memory: int) -> float:
    """Values in a line of a feature's table, by the first lines of a fragment.

    Raises:
        DataError: they cannot be read.
    """
    with _reading(fragment):
        for batch, _ in _raw(fragment, list(fragment.names.values()), memory):
            if batch.num_rows:
                return next(_valued(iter([(batch, 1.0)]), fragment))[0].num_rows / batch.num_rows
    return 1.0


def _valued(
    batches: Iterator[tuple[pa.RecordBatch, float]], fragment: Fragment
) -> Iterator[tuple[pa.RecordBatch, float]]:
    """A line a value, with roles as names: one column may have two roles."""
    own = _by_role(fragment)
    for batch, share in batches:
        columns = [batch.column(name) for name in fragment.names.values()]
        yield a_line_a_value(pa.RecordBatch.from_arrays(columns, list(fragment.names)), own), share


def _by_role(fragment: Fragment) -> Fragment:
    return replace(fragment, names={role: role for role in fragment.names})


@contextmanager
def _reading(fragment: Fragment) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{fragment.file.name} cannot be read: {error}.",
            cause="It may be damaged, or a column may change its type further down (see data.ids).",
            setting="data.source",
        ) from None


def _needed(fragment: Fragment, target: pa.Schema, min_rating: float | None) -> list[str]:
    roles = [*target.names, *(() if min_rating is None else ("rating",))]
    return [fragment.names[role] for role in roles if role in fragment.names]


def _raw(fragment: Fragment, names: list[str], memory: int) -> Iterator[tuple[pa.RecordBatch, float]]:
    names = list(dict.fromkeys(names))
    if fragment.row_groups is not None:
        with fragment.file.open() as opened:
            # without pre-buffering a row group is read page by page, however large it is
            parquet = pq.ParquetFile(opened, pre_buffer=False, buffer_size=1 << 20)
            rows = 0
            for batch in parquet.iter_batches(BATCH_ROWS, list(fragment.row_groups), names, use_threads=False):
                rows += batch.num_rows
                yield batch, rows / fragment.rows
        return
    types, file = {fragment.names[role]: fragment.types[role] for role in fragment.names}, fragment.file
    with (
        file.open() as opened,
        file.stream(opened) as stream,
        open_text(file.format, stream, types, block_bytes(memory)) as reader,
    ):
        for batch in reader:
            yield batch, min(1.0, opened.tell() / max(file.size, 1))


def _column(batch: pa.RecordBatch, fragment: Fragment, role: str, column: str) -> pa.Array:
    name = fragment.names.get(role)
    if name is None:
        value = pa.array([fragment.file.partition[column]], pa.string()).cast(fragment.types[role])
        return value.take(pa.array(np.zeros(batch.num_rows, np.int64)))
    array = batch.column(name)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _normal(batch: pa.RecordBatch, fragment: Fragment, field: pa.Field, column: str) -> pa.Array:
    array = _column(batch, fragment, field.name, column)
    if fragment.beside is not None and field.name == "timestamp":
        return _hashes(array, fragment, fragment.beside, column)
    setting = f"data.columns.{field.name}"
    what = "timestamps" if field.name == "timestamp" else "values" if _is_value(fragment, field) else "ids"
    missing = array.null_count
    if field.name == "timestamp" and pa.types.is_floating(array.type):
        missing += pc.sum(pc.is_nan(array)).as_py() or 0
    if missing:
        raise DataError(
            f"The column {column} of {fragment.file.name} has null {what} ({missing} in {batch.num_rows} rows read).",
            cause="Remove these rows from the log first.",
            setting=setting,
            value=column,
        )
    try:
        if pa.types.is_temporal(array.type):
            zone = getattr(array.type, "tz", None)
            return array.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64())
        if not pa.types.is_primitive(array.type):
            array.validate(full=True)  # Parquet's texts may be any bytes
        return array.cast(field.type)
    except pa.ArrowException as error:
        raise DataError(
            f"The column {column} of {fragment.file.name} holds {what} that are not {field.type}: {error}.",
            cause='Ids of mixed kinds need data.ids = "string".' if what == "ids" else "",
            setting=setting,
            value=column,
        ) from None


def _hashes(ids: pa.Array, fragment: Fragment, kind: pa.DataType, column: str) -> pa.Array:
    """Hashes of item ids, int64; missing ones have any: they are told of where the log is read."""
    try:
        ids = pc.fill_null(ids.cast(kind), 0 if pa.types.is_integer(kind) else "")
    except pa.ArrowException as error:
        raise DataError(
            f"The column {column} of {fragment.file.name} holds ids that are not {kind}: {error}.",
            cause='Ids of mixed kinds need data.ids = "string".',
            setting="data.ids",
        ) from None
    return pa.array(hash_ids(ids, BUCKET_SEED).view(np.int64))


def _is_value(fragment: Fragment, field: pa.Field) -> bool:
    return fragment.valued and field.name == "item"


def _rating(batch: pa.RecordBatch, fragment: Fragment, column: str) -> pa.Array:
    return _column(batch, fragment, "rating", column).cast(pa.float64(), safe=False)
