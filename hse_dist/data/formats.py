"""How text logs are parsed: CSV, TSV and JSON lines as streams of Arrow record batches.

In: an open byte stream, its format and the type of each column wanted. Out: a reader of record batches. Without types
the reader has all columns with the types that the first block suggests; its schema is what a header check needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson

BLOCK_BYTES = 4 << 20
"""Most bytes of text parsed at a time; a header is looked for in so many. A line must fit into a block."""
LEAST_BLOCK_BYTES = 1 << 16
HELD_BLOCKS = 48
"""Blocks that Arrow holds at a time, as text and parsed: it reads ahead of a slow consumer (measured)."""
NULLS = ["", "null", "NULL"]
"""What counts as missing in a CSV cell; not NaN or NA, which may be ids."""


def block_bytes(memory: int) -> int:
    """The size of a block where a reader may take a quarter of `memory` bytes."""
    return min(BLOCK_BYTES, max(LEAST_BLOCK_BYTES, memory // (4 * HELD_BLOCKS)))


def open_text(format: str, stream: Any, types: Mapping[str, pa.DataType] | None, block_size: int | None = None) -> Any:
    """A streaming reader of `csv`, `tsv` or `jsonl`, by default with the largest blocks.

    Raises:
        pa.ArrowException: the first block cannot be parsed.
    """
    if format == "jsonl":
        parse = pajson.ParseOptions()
        if types is not None:
            parse = pajson.ParseOptions(
                explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore"
            )
        return pajson.open_json(
            stream, pajson.ReadOptions(use_threads=False, block_size=block_size or BLOCK_BYTES), parse
        )
    return pacsv.open_csv(
        stream,
        pacsv.ReadOptions(use_threads=False, block_size=block_size or BLOCK_BYTES),
        pacsv.ParseOptions(delimiter="\t" if format == "tsv" else ","),
        pacsv.ConvertOptions(
            include_columns=list(types or ()), column_types=types, null_values=NULLS, strings_can_be_null=True
        ),
    )
