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
"""Bytes of text parsed at a time."""
NULLS = ["", "null", "NULL"]
"""What counts as missing in a CSV cell; not NaN or NA, which may be ids."""


def open_text(format: str, stream: Any, types: Mapping[str, pa.DataType] | None) -> Any:
    """A streaming reader of `csv`, `tsv` or `jsonl`.

    Raises:
        pa.ArrowException: the first block cannot be parsed.
    """
    if format == "jsonl":
        parse = pajson.ParseOptions()
        if types is not None:
            parse = pajson.ParseOptions(
                explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore"
            )
        return pajson.open_json(stream, pajson.ReadOptions(use_threads=False, block_size=BLOCK_BYTES), parse)
    return pacsv.open_csv(
        stream,
        pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
        pacsv.ParseOptions(delimiter="\t" if format == "tsv" else ","),
        pacsv.ConvertOptions(
            include_columns=list(types or ()), column_types=types, null_values=NULLS, strings_can_be_null=True
        ),
    )
