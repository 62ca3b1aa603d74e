"""Passes over the slots of a rank's rows: what a rewire does to a table.

In: `OwnedRows`, and keys by slot: the drop score of its entry as an unsigned number of the same order, 0 for none. Out:
fewer keys, or other live entries. Every pass is linear and in place, so that a rewire needs little memory beside the
table; there is a compiled one, and a plain one in numpy that does the same.

Slots of a row are in no order. Where the order of entries matters, for ties, it is by column.
"""

from __future__ import annotations

import numpy as np
import torch

from hse_dist.errors import NumericError
from hse_dist.native.library import call, library
from hse_dist.sparsity.budget import row_blocks
from hse_dist.sparsity.growth import Floats, Ints
from hse_dist.sparsity.selection import HIGHEST_KEY, Keys, Mask, Selection, order_keys
from hse_dist.tables.sharded import OwnedRows


def drop_keys(owned: OwnedRows, gains: Floats) -> tuple[Keys, Ints]:
    """The key of the drop score |value| · √|gain| of each live entry, uint32 [slots]; live entries of each row.

    Of blocks of columns: ‖values of the block‖ · √|gain| of each, uint32 [places]; live blocks of each row.

    Args:
        gains: float32 [rows].

    Raises:
        NumericError: names the table and the row of the first score that is NaN or infinite.
    """
    assert owned.columns.dtype == np.int32 and owned.values.dtype == np.float32
    owned = in_lengths(owned)
    rows, weights = len(owned.offsets) - 1, np.sqrt(np.abs(gains))
    keys, live = np.empty(len(owned.values), np.uint32), np.empty(rows, np.int64)
    if library() is not None:
        threads, (values, columns) = torch.get_num_threads(), (owned.values, owned.columns)
        bad = call("hse_drop_keys", rows, threads, owned.dims, owned.offsets, values, columns, weights, keys, live)
        if bad >= 0:
            here = slice(owned.offsets[bad], owned.offsets[bad + 1])
            scores = (np.abs(values[here]) * weights[bad])[columns[here] < owned.dims]
            keys_of(scores, np.full(len(scores), owned.first + bad), "drop")
        return keys, live
    for first, last in row_blocks(owned.offsets):
        begin, end = owned.offsets[first], owned.offsets[last]
        here = begin + np.flatnonzero(owned.columns[begin:end] < owned.dims)
        row = np.searchsorted(owned.offsets, here, side="right") - 1
        keys[begin:end] = 0
        keys[here] = keys_of(np.abs(owned.values[here]) * weights[row], row + owned.first, "drop")
        live[first:last] = np.bincount(row - first, minlength=last - first)
    return keys, live


def in_lengths(owned: OwnedRows) -> OwnedRows:
    """The rows with the length of each block in place of its values; rows without blocks as they are."""
    if owned.block == 1:
        return owned
    lengths = np.sqrt((owned.by_place**2).sum(1))
    return OwnedRows(owned.first, owned.last, owned.offsets, lengths, owned.columns, owned.dims)


def keys_of(scores: Floats, rows: Ints, what: str) -> Keys:
    """Sortable keys of scores.

    Raises:
        NumericError: names the table and the row of the first score that is not a number.
    """
    try:
        return order_keys(scores)
    except NumericError:
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise NumericError(
            f"Table item, row {rows[bad]}: its {what} score is {scores[bad]}.",
            cause="Training diverged; a smaller learning rate is the usual cure.",
            setting="train.learning_rate",
        ) from None


def take(owned: OwnedRows, keys: Keys, selection: Selection, *, largest: bool) -> Ints:
    """Set the keys that a selection does not choose to 0, in place; how many of each row are chosen, int64 [rows]."""
    rows, threshold = len(owned.offsets) - 1, selection.threshold
    low, high = (threshold, HIGHEST_KEY) if largest else (1, threshold)
    if selection.count == 0:
        low, high = 1, 0
    if library() is not None:
        counts = np.empty(rows, np.int64)
        ties = call("hse_take", rows, torch.get_num_threads(), owned.offsets, keys, low, high, threshold, counts)
    else:
        keys[(keys < low) | (keys > high)] = 0
        counts = np.add.reduceat(keys != 0, owned.offsets[:-1], dtype=np.int64) if rows else np.empty(0, np.int64)
        ties = int(np.count_nonzero(keys == threshold))
    (quota,) = selection.quotas
    if selection.count and ties > quota:
        lost = _behind(owned, np.flatnonzero(keys == threshold), quota)
        keys[lost] = 0
        counts -= np.bincount(np.searchsorted(owned.offsets, lost, side="right") - 1, minlength=rows)
    return counts


def _behind(owned: OwnedRows, slots: Ints, quota: int) -> Ints:
    """The slots after the first `quota` in canonical order."""
    rows = np.searchsorted(owned.offsets, slots, side="right")
    return slots[np.lexsort((owned.columns[slots], rows))[quota:]]


def find_live(owned: OwnedRows, rows: Ints, columns: Ints) -> Mask:
    """Which of the positions are live.

    Args:
        rows: int64 [n], ascending. columns: int64 [n].
    """
    starts, of_group = groups(rows)
    if library() is not None:
        found, parts = np.empty(len(rows), np.bool_), (starts, of_group - owned.first, columns)
        call("hse_find_live", len(of_group), torch.get_num_threads(), *parts, owned.offsets, owned.columns, found)
        return found
    slots, slot_rows = _slots_of(owned, of_group)
    live = owned.columns[slots] < owned.dims
    positions = np.sort(slot_rows[live] * owned.dims + owned.columns[slots[live]])
    wanted = rows * owned.dims + columns
    place = np.searchsorted(positions, wanted)
    found = place < len(positions)
    found[found] = positions[place[found]] == wanted[found]
    return found


def groups(rows: Ints) -> tuple[Ints, Ints]:
    """Runs of equal rows: starts int64 [groups + 1], and their rows int64 [groups]."""
    if not len(rows):
        return np.zeros(1, np.int64), np.empty(0, np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(rows)) + 1])
    return np.append(starts, len(rows)), rows[starts]


def _slots_of(owned: OwnedRows, rows: Ints) -> tuple[Ints, Ints]:
    """All slots of some rows, and the row of each."""
    starts = owned.offsets[rows - owned.first]
    lengths = owned.offsets[rows - owned.first + 1] - starts
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within, np.repeat(rows, lengths)


def free(owned: OwnedRows, dropped: Keys, restored: Keys) -> None:
    """Free the slots with a key in `dropped` and none in `restored`; all else stays in place."""
    if library() is not None and owned.block == 1:
        threads, (values, columns) = torch.get_num_threads(), (owned.values, owned.columns)
        call("hse_free_slots", len(dropped), threads, owned.dims, dropped, restored, values, columns)
        return
    gone = (dropped != 0) & (restored == 0)
    owned.by_place[gone], owned.columns[gone] = 0.0, owned.dims


def place(owned: OwnedRows, rows: Ints, columns: Ints) -> None:
    """Put new entries, in canonical order and with value 0, into free slots of their rows."""
    starts, of_group = groups(rows)
    slots, slot_rows = _slots_of(owned, of_group)
    is_free = owned.columns[slots] == owned.dims
    free_slots, free_rows = slots[is_free], slot_rows[is_free]
    # the i-th new entry of a row takes its i-th free slot
    nth = np.arange(len(rows)) - np.repeat(starts[:-1], np.diff(starts))
    first_free = np.repeat(np.searchsorted(free_rows, of_group), np.diff(starts))
    target = free_slots[first_free + nth]
    owned.columns[target], owned.by_place[target] = columns, 0.0


def rescale_to_unit(owned: OwnedRows) -> None:
    """Give every row with a value length 1, in place; at unit rows a score does not depend on a row's length."""
    rows, offsets = len(owned.offsets) - 1, owned.offsets * owned.block
    if library() is not None:
        call("hse_unit_slots", rows, torch.get_num_threads(), offsets, owned.values)
        return
    for first, last in row_blocks(offsets):
        here = slice(offsets[first], offsets[last])
        squares = owned.values[here].astype(np.float64) ** 2
        norms = np.sqrt(np.add.reduceat(squares, offsets[first:last] - offsets[first]))
        norms[norms == 0.0] = 1.0
        owned.values[here] /= np.repeat(norms.astype(np.float32), np.diff(offsets[first : last + 1]))
