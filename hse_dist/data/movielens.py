"""The tables of MovieLens-100K, in the two forms that they come in.

In: the bytes of a file, as the official archive has it (`u.data`, `u.user`, `u.item`: no header; what is no number is
latin-1 between `|`) or as recbole writes it (typed header, tabs). Out: one table, whatever the form, and the sha256 of
its content, which does not depend on the order of lines.

Of items the forms share the id, the genres, and the year at the end of the title; where something else stands there
(`unknown`, `(V)`), the year is missing.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""What the flags at the end of a line of `u.item` mean, in their order."""
LOG = ("user_id", "item_id", "rating", "timestamp")
USERS = ("user_id", "age", "gender", "occupation", "zip_code")
YEAR = re.compile(r"\((?P<year>[^()]*)\)\s*$")
ITEM_FIELDS = 5 + len(GENRES)
EXAMPLE = "recbole/dataset_example/ml-100k"


@dataclass(frozen=True)
class Table:
    """A table of the data set: names of its files alone, where they are in an archive or wheel, and its content."""

    cache: str
    files: tuple[str, ...]
    members: tuple[str, ...]
    content: str
    parse: Callable[[bytes], pa.Table]
    """Raises LookupError, OverflowError, ValueError or pa.ArrowException where it is no such file."""
    digest: Callable[[pa.Table], str]


def parse_log(content: bytes) -> pa.Table:
    """user_id, item_id, rating and timestamp, int64."""
    header = content.startswith(b"user_id")
    return _read(content, LOG, {name: pa.int64() for name in LOG}, "\t", header)


def _read(
    content: bytes, names: tuple[str, ...], types: dict[str, pa.DataType], delimiter: str, header: bool
) -> pa.Table:
    table = pacsv.read_csv(
        io.BytesIO(content),
        pacsv.ReadOptions(use_threads=False, column_names=list(names), skip_rows=int(header)),
        pacsv.ParseOptions(delimiter=delimiter, quote_char=False),
        pacsv.ConvertOptions(column_types=types),
    )
    if any(column.null_count for column in table.columns):
        raise ValueError("numbers are missing")
    return table


def digest_log(table: pa.Table) -> str:
    """sha256 of the rows, sorted by (user, item, rating, timestamp), int64 little-endian, row by row."""
    if any(table.column(name).null_count for name in LOG):
        raise ValueError("numbers are missing")
    columns = [table.column(name).to_numpy() for name in LOG]
    order = np.lexsort(columns[::-1])
    rows = np.stack([column[order] for column in columns], axis=1).astype("<i8")
    return hashlib.sha256(rows.tobytes()).hexdigest()


def parse_users(content: bytes) -> pa.Table:
    """user_id and age (int64); gender, occupation and zip_code (string)."""
    header = content.startswith(b"user_id")
    types = {name: pa.int64() if name in ("user_id", "age") else pa.string() for name in USERS}
    return _read(content, USERS, types, "\t" if header else "|", header).sort_by("user_id")


def digest_users(table: pa.Table) -> str:
    """sha256 of the lines of `u.user`, sorted."""
    return _digest(table.select(USERS))


def parse_items(content: bytes) -> pa.Table:
    """item_id and release_year (int64, which may be missing), and class: the genres, list<string>."""
    if content.startswith(b"item_id"):
        lines = [line.split("\t") for line in content.decode().split("\n")[1:] if line]
        found = [(int(item), year, genres.split()) for item, _, year, genres in lines]
    else:
        found = [_official(line.split("|")) for line in content.decode("latin-1").split("\n") if line.strip()]
    found.sort(key=lambda line: line[0])
    years = [int(year) if re.fullmatch("[0-9]{4}", year) else None for _, year, _ in found]
    return pa.table(
        {
            "item_id": pa.array([item for item, _, _ in found], pa.int64()),
            "release_year": pa.array(years, pa.int64()),
            "class": pa.array([genres for _, _, genres in found], pa.list_(pa.string())),
        }
    )


def _official(fields: list[str]) -> tuple[int, str, list[str]]:
    if len(fields) != ITEM_FIELDS:
        raise ValueError(f"a line has {len(fields)} fields, not {ITEM_FIELDS}")
    year, flags = YEAR.search(fields[1]), fields[5:]
    genres = [genre for genre, flag in zip(GENRES, flags, strict=True) if flag.strip() == "1"]
    return int(fields[0]), year["year"] if year else "", genres


def digest_items(table: pa.Table) -> str:
    """sha256 of lines of id, year and genres, sorted."""
    genres = [" ".join(own) for own in table.column("class").to_pylist()]
    return _digest(table.select(["item_id", "release_year"]).append_column("class", pa.array(genres, pa.string())))


def _digest(table: pa.Table) -> str:
    lines = zip(*(column.to_pylist() for column in table.columns), strict=True)
    texts = sorted("|".join("" if field is None else str(field) for field in line) for line in lines)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


TABLES = {
    "ml-100k": Table(
        "interactions.parquet",
        ("u.data", "ml-100k.inter"),
        ("ml-100k/u.data", f"{EXAMPLE}/ml-100k.inter"),
        "ec862504a8c24b195f5194e51fb18bb2d59428d00d96d6d1c63433a3bd5f2f47",
        parse_log,
        digest_log,
    ),
    "ml-100k/users": Table(
        "users.parquet",
        ("u.user", "ml-100k.user"),
        ("ml-100k/u.user", f"{EXAMPLE}/ml-100k.user"),
        "78fa1e41e368cabf2877bb42d72b38b9d5fa44fffce54e00600e82ce7faf1b9d",
        parse_users,
        digest_users,
    ),
    "ml-100k/items": Table(
        "items.parquet",
        ("u.item", "ml-100k.item"),
        ("ml-100k/u.item", f"{EXAMPLE}/ml-100k.item"),
        "949b733e2fb78fb518b62a5967400f9df1a46547263ab96d5423baaac01586e2",
        parse_items,
        digest_items,
    ),
}
