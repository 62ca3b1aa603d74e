"""One rewire: drop, grow, restore, apply.

In: the rows that this rank owns, growth candidates of these rows, and the server. Out: the same rows with other live
entries, as many on all ranks together as before. Pure but for the conversation with the server; arrays of live entries
are in canonical order (row, then column) from beginning to end, and ties go by it.

Equal tables and an equal multiset of candidate triples give bit-equal tables, whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hse_dist.config import SparsitySettings
from hse_dist.errors import NumericError
from hse_dist.sparsity.budget import count_by_row, foremost, row_blocks, row_drops
from hse_dist.sparsity.client import Transport, select
from hse_dist.sparsity.growth import Floats, Ints, random_positions, without
from hse_dist.sparsity.messages import Close, Closed, Failed, Open, Plan
from hse_dist.sparsity.selection import Keys, Mask, order_keys
from hse_dist.tables.sharded import OwnedRows

Indices = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Candidates:
    """Positions that could grow, in canonical order: rows, columns int64 [n], scores float32 [n]."""

    rows: Ints
    columns: Ints
    scores: Floats


@dataclass(frozen=True)
class Entries:
    """Live entries in canonical order: slot, row, column int32 [n], key of the drop score uint32 [n].

    They are all live entries of a shard: what is as long as they are is kept narrow.
    """

    slots: Indices
    rows: Indices
    columns: Indices
    keys: Keys


@dataclass(frozen=True)
class Change:
    """What to do: which of the entries go, and which positions come."""

    gone: Mask
    new_rows: Ints
    new_columns: Ints
    dropped: int
    restored: int


def rewire(
    owned: OwnedRows,
    gains: Floats,
    candidates: Candidates | None,
    transport: Transport,
    settings: SparsitySettings,
    *,
    version: int,
    step: int,
    seed: int,
    visits: int = 0,
) -> Closed:
    """Rewire `owned` in place together with the other ranks.

    Args:
        gains: of the owned rows, float32 [rows].
        candidates: positions of owned rows with their growth scores; None draws random ones.
        version: of the tables now.
        step: of the run, for the schedule.
        visits: of owned rows by ranks and steps since the last rewire, for the journal.

    Returns:
        the new version, and what the journal says of it.

    Raises:
        NumericError: a value or a score of some rank is NaN or infinite; names the row, on all ranks.
        ProtocolError: the ranks disagree.
    """
    with _told(transport, version + 1):
        entries = live_entries(owned, gains)
    live = _sums(owned, lambda slots: owned.columns[slots] < owned.dims)
    floor = np.full(len(live), settings.budget.floor)
    protected = foremost(entries.rows, entries.keys, floor, owned.first, largest=True)
    plan = transport.ask(Open(version + 1, step, owned.first, len(entries.rows), int((~protected).sum())))
    if settings.budget.kind == "global":
        dropped = _drop_global(entries, protected, plan, transport)
    else:
        dropped = _drop_by_row(entries, live, plan, settings, owned.first)
    dropped_by_row = count_by_row(entries.rows, dropped, owned.first, owned.last)
    room, limit = _room(owned, live, dropped_by_row, settings)
    if candidates is None:
        rows = np.arange(owned.first, owned.last)
        wanted = np.minimum(room, settings.rewire.explore)
        candidates = Candidates(*random_positions(rows, wanted, owned.dims, seed, plan.version))
    new_rows, new_columns = _grow(owned, entries, room, candidates, plan, transport, settings)
    grown_by_row = np.bincount(new_rows - owned.first, minlength=len(room))
    back = np.minimum(dropped_by_row, limit - grown_by_row)
    restored = _restore(entries, dropped, back, owned.first, plan, transport, settings)
    change = Change(dropped & ~restored, new_rows, new_columns, int(dropped.sum()), int(restored.sum()))
    apply(owned, entries, change)
    closed: Closed = transport.ask(
        Close(
            version=plan.version,
            step=step,
            live=int(owned.live.sum()),
            dropped=change.dropped,
            grown=len(change.new_rows),
            restored=change.restored,
            visits=visits,
        )
    )
    return closed


@contextmanager
def _told(transport: Transport, version: int) -> Iterator[None]:
    """Tell the others of an error in the block: they would wait for this rank's next message."""
    try:
        yield
    except NumericError as error:
        transport.ask(Failed(version, error))
        raise


def live_entries(owned: OwnedRows, gains: Floats) -> Entries:
    """The live entries with the key of their drop score |value| · √|gain|."""
    count = int(np.count_nonzero(owned.live))
    found = Entries(
        slots=np.empty(count, dtype=np.int32),
        rows=np.empty(count, dtype=np.int32),
        columns=np.empty(count, dtype=np.int32),
        keys=np.empty(count, dtype=np.uint32),
    )
    weights, done = np.sqrt(np.abs(gains)), 0
    for first, last in row_blocks(owned.offsets):
        begin, end = owned.offsets[first], owned.offsets[last]
        slots = begin + np.flatnonzero(owned.columns[begin:end] < owned.dims)
        rows = np.searchsorted(owned.offsets, slots, side="right") - 1
        order = np.argsort(rows * (owned.dims + 1) + owned.columns[slots])
        slots, rows = slots[order], rows[order]
        keys = keys_of(np.abs(owned.values[slots]) * weights[rows], rows + owned.first, "drop")
        part = slice(done, done + len(slots))
        found.slots[part], found.rows[part], found.keys[part] = slots, rows + owned.first, keys
        found.columns[part] = owned.columns[slots]
        done += len(slots)
    return found


def _sums(owned: OwnedRows, per_slot: Callable[[slice], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The sum of `per_slot(slots)` over the slots of each row, int64 or float64 [rows]."""
    parts = [np.empty(0, dtype=np.int64)]
    for first, last in row_blocks(owned.offsets):
        begin, end = owned.offsets[first], owned.offsets[last]
        parts.append(np.add.reduceat(per_slot(slice(begin, end)), owned.offsets[first:last] - begin))
    return np.concatenate(parts)


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


def _drop_global(entries: Entries, protected: Mask, plan: Plan, transport: Transport) -> Mask:
    dropped = ~protected
    chosen, _ = select(transport, plan.version, "drop", entries.keys[dropped])
    dropped[dropped] = chosen
    return dropped


def _drop_by_row(entries: Entries, live: Ints, plan: Plan, settings: SparsitySettings, first: int) -> Mask:
    quota = row_drops(live, plan.fraction, settings.budget.floor)
    return foremost(entries.rows, entries.keys, quota, first, largest=False)


def _room(owned: OwnedRows, live: Ints, dropped: Ints, settings: SparsitySettings) -> tuple[Ints, Ints]:
    """How many entries each row may take up after the drop, int64 [rows]: by growth, and by growth and return.

    A row above the ceiling (of an earlier configuration) may go back to where it was, but does not grow.
    """
    if settings.budget.kind == "row":
        return dropped, dropped
    ceiling = np.minimum(np.diff(owned.offsets), settings.budget.ceiling)
    left = live - dropped
    return np.maximum(ceiling - left, 0), np.maximum(ceiling, live) - left


def _grow(
    owned: OwnedRows,
    entries: Entries,
    room: Ints,
    candidates: Candidates,
    plan: Plan,
    transport: Transport,
    settings: SparsitySettings,
) -> tuple[Ints, Ints]:
    """What grows, in canonical order: of each row the strongest positions that fit, of these the strongest of all."""
    seen = np.zeros(len(room), dtype=bool)
    seen[candidates.rows - owned.first] = True
    near = seen[entries.rows - owned.first]
    live_rows, live_columns = entries.rows[near].astype(np.int64), entries.columns[near].astype(np.int64)
    new = without(candidates.rows, candidates.columns, live_rows, live_columns, owned.dims)
    rows, columns = candidates.rows[new], candidates.columns[new]
    with _told(transport, plan.version):
        keys = keys_of(candidates.scores[new], rows, "grow")
    fits = foremost(rows, keys, room, owned.first, largest=True)
    rows, columns, keys = rows[fits], columns[fits], keys[fits]
    if settings.budget.kind == "global":
        chosen, _ = select(transport, plan.version, "grow", keys)
        rows, columns = rows[chosen], columns[chosen]
    return rows, columns


def _restore(
    entries: Entries,
    dropped: Mask,
    back: Ints,
    first: int,
    plan: Plan,
    transport: Transport,
    settings: SparsitySettings,
) -> Mask:
    """Which of the dropped entries return, so that the count is what it was: the strongest, at most `back` a row."""
    lost = np.flatnonzero(dropped)
    rows, keys = entries.rows[lost], entries.keys[lost]
    can = lost[foremost(rows, keys, back, first, largest=True)]
    if settings.budget.kind == "global":
        chosen, _ = select(transport, plan.version, "restore", entries.keys[can])
        can = can[chosen]
    restored = np.zeros(len(dropped), dtype=bool)
    restored[can] = True
    return restored


def apply(owned: OwnedRows, entries: Entries, change: Change) -> None:
    """Free the slots of what is gone and put what is new, with value 0, into free slots; all else stays in place."""
    slots = entries.slots[change.gone]
    owned.values[slots], owned.columns[slots] = 0.0, owned.dims
    if not len(change.new_rows):
        return
    rows = np.unique(change.new_rows)
    starts = owned.offsets[rows - owned.first]
    lengths = owned.offsets[rows - owned.first + 1] - starts
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    slots = np.repeat(starts, lengths) + within
    is_free = owned.columns[slots] == owned.dims
    free, free_rows = slots[is_free], np.repeat(rows, lengths)[is_free]
    # the i-th new entry of a row takes its i-th free slot
    first_free = np.searchsorted(free_rows, change.new_rows)
    first_new = np.searchsorted(change.new_rows, change.new_rows)
    target = free[first_free + np.arange(len(change.new_rows)) - first_new]
    owned.columns[target], owned.values[target] = change.new_columns, 0.0


def rescale_to_unit(owned: OwnedRows) -> None:
    """Give every row with a value length 1, in place; at unit rows a score does not depend on a row's length."""
    norms = np.sqrt(_sums(owned, lambda slots: owned.values[slots].astype(np.float64) ** 2))
    norms[norms == 0.0] = 1.0
    owned.values /= np.repeat(norms.astype(np.float32), np.diff(owned.offsets))
