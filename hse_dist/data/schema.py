"""What the columns of a log mean, and which pieces it is read in.

In: the files of a log and the names of its columns. Out: a `LogSchema` — one type for user, item and timestamp over all
files — and a list of `Fragment`s, each of which one task reads. All mistakes that headers and footers can show (a
missing column, a wrong type, a file that is not Parquet) are found here, before any task starts.

Large Parquet files are split by row groups; a text file is one fragment, since its lines cannot be found without
reading it. The fragments depend on the log alone, so that nothing after them depends on the number of tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from hse_dist.config import DataSettings
from hse_dist.data.formats import open_text
from hse_dist.data.source import LogFile
from hse_dist.errors import DataError

ROLES = ("user", "item", "timestamp", "rating", "value")
"""What a column is for; only tables of features have values (`features.py`)."""
FRAGMENT_BYTES = 64 << 20
"""Uncompressed bytes of Parquet row groups that make one fragment."""
TEXT_ROW_BYTES = 8
"""A line of a text log is at least about this long; used to estimate rows from above."""
COMPRESSED = 8
"""Assumed ratio of a compressed text file."""


@dataclass(frozen=True)
class Fragment:
    """A piece of a log that one task reads; pickles."""

    file: LogFile
    names: Mapping[str, str]
    """Role to the column's name in this file, typed header included; roles that the path gives are not in it."""
    types: Mapping[str, pa.DataType]
    """Role to the type that the column is read as."""
    row_groups: tuple[int, ...] | None
    """Parquet row groups; None for a text file."""
    rows: int
    """Rows: exact for Parquet, an estimate from above for text."""
    kept: bool = False
    """Whether it is of interactions that were read before (`extend.py`), on which ratings have done their work."""
    valued: bool = False
    """Whether its items are values of a feature: several in a line, or none (`values.py`)."""
    separator: str | None = None
    """What stands between values in one text."""
    beside: pa.DataType | None = None
    """Of values that stand in the log: type of the items' ids, whose hashes take the place of times."""


@dataclass(frozen=True)
class LogSchema:
    """Types after normalising: ids int64 or large_string; timestamp int64, float64 or None."""

    user: pa.DataType
    item: pa.DataType
    timestamp: pa.DataType | None

    def arrow(self) -> pa.Schema:
        """Columns user, item and, where there is one, timestamp."""
        fields = [("user", self.user), ("item", self.item)]
        return pa.schema(fields if self.timestamp is None else [*fields, ("timestamp", self.timestamp)])

    def plain(self) -> pa.Schema:
        """The same as it is stored for others, with int64 or string ids."""
        return pa.schema([(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type) for f in self.arrow()])


def plan(files: list[LogFile], settings: DataSettings, items: str = "item") -> tuple[LogSchema, list[Fragment]]:
    """The types of a log and the fragments that it is read in.

    Args:
        items: the role of what users have: `value` in tables of features.

    Raises:
        DataError: see the module docstring; also when two files disagree about a type, or the log is empty.
    """
    fragments = [fragment for file in files for fragment in _fragments(file, settings)]
    if not any(fragment.rows for fragment in fragments):
        raise DataError("The log is empty.", setting="data.source", value=settings.source)
    fragments = [fragment for fragment in fragments if fragment.rows]
    timestamp = None
    if settings.columns.timestamp is not None:
        timestamp = _common(fragments, "timestamp", settings)
    return LogSchema(_common(fragments, "user", settings), _common(fragments, items, settings), timestamp), fragments


def has_rows(file: LogFile, settings: DataSettings) -> bool:
    """Whether a file has any row, as far as its header or footer tells.

    Raises:
        DataError: see the module docstring.
    """
    return any(fragment.rows for fragment in _fragments(file, settings))


def counts_time(fragments: list[Fragment]) -> bool:
    """Whether times are plain numbers, and not dates, which are read as microseconds."""
    return not any(_kind(fragment.types["timestamp"]) == "temporal" for fragment in fragments)


def _common(fragments: list[Fragment], role: str, settings: DataSettings) -> pa.DataType:
    """The one type that a role has over all fragments."""
    column = getattr(settings.columns, role)
    kinds: dict[str, str] = {}
    for fragment in fragments:
        kinds.setdefault(_kind(fragment.types[role]).removesuffix("s"), fragment.file.name)
    kinds.pop("unknown", None)
    if role in ("user", "item") and settings.ids != "auto":
        return pa.int64() if settings.ids == "integer" else pa.large_string()
    if set(kinds) == {"integer", "float"}:
        return pa.float64()
    if len(kinds) > 1:
        listed = " and ".join(f"{kind} in {name}" for kind, name in sorted(kinds.items()))
        setting, value = ("data.ids", settings.ids) if role in ("user", "item") else (f"data.columns.{role}", column)
        raise DataError(
            f"The column {column} is {listed}.", cause="All files need one type.", setting=setting, value=value
        )
    types = {"integer": pa.int64(), "string": pa.large_string(), "float": pa.float64(), "temporal": pa.int64()}
    types["boolean"] = pa.large_string()  # a value's text
    return types[next(iter(kinds), "string" if role in ("user", "item", "value") else "float")]


def _kind(type: pa.DataType) -> str:
    if pa.types.is_dictionary(type):
        type = type.value_type
    if pa.types.is_list(type) or pa.types.is_large_list(type):
        return {"integer": "integers", "string": "strings", "unknown": "strings"}.get(_kind(type.value_type), "other")
    if pa.types.is_integer(type):
        return "integer"
    if pa.types.is_boolean(type):
        return "boolean"
    if pa.types.is_floating(type) or pa.types.is_decimal(type):
        return "float"
    if pa.types.is_timestamp(type) or pa.types.is_date(type):
        return "temporal"
    if pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type):
        return "string"
    return "unknown" if pa.types.is_null(type) else "other"


ALLOWED = {
    "user": ("integer", "string", "unknown"),
    "item": ("integer", "string", "unknown"),
    "timestamp": ("integer", "float", "temporal", "unknown"),
    "rating": ("integer", "float", "unknown"),
    "value": ("integer", "string", "boolean", "unknown", "integers", "strings"),
}
WANTED = {
    "user": "integer or string",
    "item": "integer or string",
    "timestamp": "numeric or temporal",
    "rating": "numeric",
    "value": "integer, boolean, string, or a list of integers or strings",
}


REAL = (
    "Round it to whole numbers or buckets first. Whole numbers of which some are missing are double, too, where pandas "
    'wrote them: its type "Int64" keeps them whole.'
)


def _fragments(file: LogFile, settings: DataSettings) -> list[Fragment]:
    if file.format == "parquet":
        return _parquet_fragments(file, settings)
    if file.size == 0:
        return []
    header = _text_header(file, settings)
    if header is None:
        return []
    names, types = _columns(file, header, settings)
    if file.format in ("csv", "tsv"):
        types = {role: _csv_type(role, type, settings) if role in names else type for role, type in types.items()}
    else:
        types = {role: _json_type(role, type) if role in names else type for role, type in types.items()}
    rows = max(1, file.size * (COMPRESSED if file.compressed else 1) // TEXT_ROW_BYTES)
    return [Fragment(file, names, types, None, rows)]


def _parquet_fragments(file: LogFile, settings: DataSettings) -> list[Fragment]:
    with file.open() as opened:
        try:
            parquet = pq.ParquetFile(opened)
            metadata, schema = parquet.metadata, parquet.schema_arrow
            schema.names  # noqa: B018  # raises where a name is no text
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{file.name} is not a readable Parquet file: {error}.",
                cause="It may be cut off or damaged.",
                setting="data.source",
                value=settings.source,
            ) from None
    names, types = _columns(file, schema, settings)
    fragments: list[Fragment] = []
    groups: list[int] = []
    rows = weight = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        groups.append(index)
        rows, weight = rows + group.num_rows, weight + group.total_byte_size
        if weight >= FRAGMENT_BYTES or index == metadata.num_row_groups - 1:
            fragments.append(Fragment(file, names, types, tuple(groups), rows))
            groups, rows, weight = [], 0, 0
    return fragments


def _text_header(file: LogFile, settings: DataSettings) -> pa.Schema | None:
    """Names and types as the first block of a text file shows them; None: there is no line below the names."""
    try:
        if file.compressed:
            with file.stream() as stream:
                if not stream.read(1):
                    return None
        with file.stream() as stream, open_text(file.format, stream, None) as reader:
            schema: pa.Schema = reader.schema
            schema.names  # noqa: B018  # raises where a name is no text
            # types that nothing tells could not be those of the other files
            empty = all(map(pa.types.is_null, schema.types)) and next(iter(reader), None) is None
            return None if empty else schema
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file.name} cannot be read as {file.format.upper()}: {error}.",
            setting="data.source",
            value=settings.source,
        ) from None


def _columns(file: LogFile, schema: pa.Schema, settings: DataSettings) -> tuple[dict[str, str], dict[str, pa.DataType]]:
    """(role to name in the file, role to type) of the roles that the settings name."""
    names: dict[str, str] = {}
    types: dict[str, pa.DataType] = {}
    for role in ROLES:
        column = getattr(settings.columns, role, None)
        if column is None:
            continue
        name = _find(column, schema.names, typed=file.format != "parquet")
        if name is not None:
            if schema.names.count(name) > 1:
                raise DataError(
                    f"{file.name} has the column {name} more than once.", setting=f"data.columns.{role}", value=column
                )
            names[role], types[role] = name, schema.field(name).type
        elif column in file.partition:
            types[role] = _partition_type(file.partition[column])
        else:
            raise DataError(
                f"{file.name} has no column {column}.",
                cause=f"It has {', '.join([*schema.names, *file.partition]) or 'none'}.",
                setting=f"data.columns.{role}",
                value=column,
            )
        if _kind(types[role]) not in ALLOWED[role]:
            raise DataError(
                f"The column {column} of {file.name} is {types[role]}; it must be {WANTED[role]}.",
                cause=REAL if role == "value" and _kind(types[role]) == "float" else "",
                setting=f"data.columns.{role}",
                value=column,
            )
    return names, types


def _find(column: str, names: list[str], *, typed: bool) -> str | None:
    if column in names:
        return column
    # recbole writes the type into the header: user_id:token
    return next((name for name in names if typed and name.partition(":")[0] == column), None)


def _partition_type(value: str | None) -> pa.DataType:
    if value is None:
        return pa.null()
    digits = value.removeprefix("-")
    return pa.int64() if digits.isdecimal() and (digits == "0" or digits[0] != "0") else pa.string()


def _csv_type(role: str, type: pa.DataType, settings: DataSettings) -> pa.DataType:
    """What a CSV column is read as: the first lines show its kind, later ones may need more room."""
    if role in ("user", "item"):
        return pa.int64() if pa.types.is_integer(type) and settings.ids != "string" else pa.string()
    if role == "value":
        return pa.int64() if pa.types.is_integer(type) else pa.string()
    return _json_type(role, type)


def _json_type(role: str, type: pa.DataType) -> pa.DataType:
    kind = _kind(type)
    if role in ("user", "item"):
        return pa.string() if kind == "unknown" else type
    if role == "value":
        return {"unknown": pa.string(), "strings": pa.list_(pa.string())}.get(kind, type)
    if kind == "temporal":
        return pa.timestamp("us", tz=getattr(type, "tz", None))
    return pa.float64()
