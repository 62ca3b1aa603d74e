"""The values of a feature in a line of its table: none, one, or several.

In: a record batch as it was read. Out: a line for each value. A missing value, an empty text and an empty list are
none; a list is taken apart, and a text where the settings name what stands between values.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hse_dist.data.schema import Fragment


def a_line_a_value(batch: pa.RecordBatch, fragment: Fragment) -> pa.RecordBatch:
    """Lines of user and value of a feature's table.

    Args:
        batch: columns of the fragment.
        fragment: names its roles `user` and `item`, the latter the value; one that the path gives stays with it.

    Returns:
        The same columns, with values that are texts or numbers and neither missing nor empty.
    """
    name = fragment.names.get("item")
    if name is None:
        return batch
    values, lines = _plain(batch.column(name)), None
    if fragment.separator is not None and not pa.types.is_nested(values.type):
        texts = values.cast(pa.large_string())
        texts.validate(full=True)  # Parquet's texts may be any bytes
        values = pc.split_pattern(texts, fragment.separator)
    if pa.types.is_nested(values.type):
        lines = pc.list_parent_indices(values)
        values = _plain(pc.list_flatten(values))
    there = pc.is_valid(values)
    if pa.types.is_large_string(values.type):
        there = pc.and_(there, pc.greater(pc.binary_length(values), 0))
    kept = pa.array(np.flatnonzero(there.fill_null(False).to_numpy(zero_copy_only=False)))
    of_line = kept if lines is None else lines.take(kept)
    columns = {
        other: values.take(kept) if other == name else batch.column(other).take(of_line) for other in batch.schema.names
    }
    return pa.RecordBatch.from_pydict(columns)


def _plain(values: pa.Array) -> pa.Array:
    """Values without a dictionary; texts of one type."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    short = pa.types.is_string(values.type) or pa.types.is_string_view(values.type)
    return values.cast(pa.large_string()) if short else values
