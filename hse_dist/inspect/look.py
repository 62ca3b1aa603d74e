"""An item's neighbours, its columns and who shares them, and how many entries rows have.

In: an export. Out: small facts, in raw ids. A column is a segment of items that can be read: where D is the number of
items, column j is the item j. Nothing of size rows × D is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from hse_dist.errors import UserError
from hse_dist.export.format import Export
from hse_dist.export.recommender import Recommender


@dataclass(frozen=True)
class Segment:
    """A column that an item uses.

    Attributes:
        item: the raw id of the item that the column is; None where columns are no items.
        value: the item's entry. items: how many rows use the column.
        sharing: raw ids of the other rows with the largest entries in it, and these.
    """

    column: int
    item: Any
    value: float
    items: int
    sharing: list[tuple[Any, float]]


def row_of(export: Export, text: str | None) -> int:
    """The row of an item by the text of its id; without a text row 0, the most popular item when its
    catalogue was first prepared.

    Raises:
        UserError: there is no such item.
    """
    if text is None:
        return 0
    try:
        value: Any = int(text) if pa.types.is_integer(export.item_ids.type) else text
        row = int(Recommender(export, kernels=False).rows_of(pa.array([value], export.item_ids.type))[0])
    except (ValueError, pa.ArrowException, OverflowError):
        row = -1
    if row < 0:
        raise UserError(f"There is no item {text!r} in this export.", setting="--item", value=text)
    return row


def nearest(matrix: sp.csr_matrix, gains: np.ndarray, row: int, count: int) -> list[tuple[int, float]]:
    """Other rows by falling cosine with `row`, with the sign of their gain; those above 0.

    The sign makes it the order of what the model scores: in a start of the negative form gains are below 0, and items
    that go together have rows that point away from each other.
    """
    squares = np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel()
    norms = np.sqrt(np.maximum(squares, 1e-30))
    cosines = (matrix @ matrix[row].T).toarray().ravel() / (norms * norms[row]) * np.sign(gains)
    cosines[row] = -np.inf
    order = np.lexsort((np.arange(len(cosines)), -cosines))[:count]
    return [(int(other), float(cosines[other])) for other in order if cosines[other] > 0]


def segments(export: Export, row: int, count: int, shared: int) -> list[Segment]:
    """The item's columns by falling size of its entry; of each the `shared` strongest other items."""
    matrix = export.matrix
    begin, end = matrix.indptr[row : row + 2]
    columns, values = matrix.indices[begin:end], matrix.data[begin:end]
    order = np.lexsort((columns, -np.abs(values)))[:count]
    by_column = matrix[:, columns[order]].tocsc()
    found = []
    for place, entry in enumerate(order):
        first, last = by_column.indptr[place : place + 2]
        rows, entries = by_column.indices[first:last], by_column.data[first:last]
        others = np.lexsort((rows, -np.abs(entries)))
        chosen = [index for index in others if rows[index] != row][:shared]
        column = int(columns[entry])
        item = _id(export, column) if matrix.shape[1] == matrix.shape[0] else None
        sharing = [(_id(export, int(rows[index])), float(entries[index])) for index in chosen]
        found.append(Segment(column, item, float(values[entry]), len(rows), sharing))
    return found


def histogram(lengths: np.ndarray) -> list[tuple[str, int]]:
    """Rows by their number of live entries: 0, 1, 2–3, 4–7, …"""
    if not len(lengths):
        return []
    bins = np.where(lengths > 0, np.floor(np.log2(np.maximum(lengths, 1))).astype(np.int64) + 1, 0)
    counts = np.bincount(bins)
    names = ["0", "1", *(f"{2**power}–{2 ** (power + 1) - 1}" for power in range(1, len(counts)))]
    return [(name, int(count)) for name, count in zip(names, counts, strict=False)]


def _id(export: Export, row: int) -> Any:
    return export.item_ids[row].as_py()


def inspect(export: Export, item: str | None, count: int) -> dict[str, Any]:
    """All of it as one JSON-able object."""
    row, lengths = row_of(export, item), np.diff(export.matrix.indptr)
    near = nearest(export.matrix, export.gains, row, count)
    return {
        "item": _id(export, row),
        "row": row,
        "entries": int(lengths[row]),
        "nearest": [{"item": _id(export, other), "cosine": cosine} for other, cosine in near],
        "columns": [
            {
                "column": one.column,
                "item": one.item,
                "value": one.value,
                "items": one.items,
                "sharing": [{"item": other, "value": value} for other, value in one.sharing],
            }
            for one in segments(export, row, count, 5)
        ],
        "rows": len(lengths),
        "dims": export.matrix.shape[1],
        "live_entries": int(lengths.sum()),
        "histogram": [{"entries": name, "rows": rows} for name, rows in histogram(lengths)],
    }


def show(found: dict[str, Any]) -> None:
    """Tables on standard error."""
    from hse_dist.screen import show_table, show_texts

    title = f"Item {found['item']} (row {found['row']}, {found['entries']} live entries): the nearest items"
    show_table(title, ("item", "cosine"), [(str(one["item"]), f"{one['cosine']:.3f}") for one in found["nearest"]])
    rows = [
        (
            str(one["column"] if one["item"] is None else one["item"]),
            f"{one['value']:+.3f}",
            str(one["items"]),
            ", ".join(f"{other['item']} ({other['value']:+.3f})" for other in one["sharing"]),
        )
        for one in found["columns"]
    ]
    what = "column" if found["rows"] != found["dims"] else "column, an item"
    show_texts("Its columns, and who shares them", (what, "value", "items", "the strongest others"), rows)
    lengths = [(one["entries"], f"{one['rows']:,}".replace(",", " ")) for one in found["histogram"]]
    show_table(f"{found['live_entries']} live entries in {found['rows']} rows", ("entries", "rows"), lengths)
