"""One rewire: drop, grow, restore, apply.

In: the rows that this rank owns, growth candidates of these rows, and the server. Out: the same rows with other live
entries, as many on all ranks together as before. Pure but for the conversation with the server; arrays of live entries
are in canonical order (row, then column) from beginning to end, and ties go by it.

Equal tables and an equal multiset of candidate triples give bit-equal tables, whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from hse_dist.config import SparsitySettings
from hse_dist.errors import NumericError
from hse_dist.sparsity.budget import count_by_row, ranks_in_row, row_drops
from hse_dist.sparsity.client import Transport, select
from hse_dist.sparsity.growth import Floats, Ints, random_positions, without
from hse_dist.sparsity.messages import Close, Failed, Open, Plan
from hse_dist.sparsity.selection import Keys, Mask, order_keys
from hse_dist.tables.sharded import OwnedRows


@dataclass(frozen=True)
class Candidates:
    """Positions that could grow, in canonical order: rows, columns int64 [n], scores float32 [n]."""

    rows: Ints
    columns: Ints
    scores: Floats


@dataclass(frozen=True)
class Entries:
    """Live entries in canonical order: slot, row, column int64 [n], key of the drop score uint32 [n]."""

    slots: Ints
    rows: Ints
    columns: Ints
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
) -> int:
    """Rewire `owned` in place together with the other ranks.

    Args:
        gains: of the owned rows, float32 [rows].
        candidates: positions of owned rows with their growth scores; None draws random ones.
        version: of the tables now.
        step: of the run, for the schedule.
        visits: of owned rows by ranks and steps since the last rewire, for the journal.

    Returns:
        the new version.

    Raises:
        NumericError: a value or a score of some rank is NaN or infinite; names the row, on all ranks.
        ProtocolError: the ranks disagree.
    """
    with _told(transport, version + 1):
        entries = live_entries(owned, gains)
    live = np.bincount(entries.rows - owned.first, minlength=owned.last - owned.first)
    protected = ranks_in_row(entries.rows, entries.keys, largest=True) < settings.budget.floor
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
    closed = transport.ask(
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
    return closed.version


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
    slots = np.flatnonzero(owned.live)
    rows, columns = owned.slot_rows()[slots], owned.columns[slots]
    order = np.lexsort((columns, rows))
    slots, rows, columns = slots[order], rows[order], columns[order]
    scores = np.abs(owned.values[slots]) * np.sqrt(np.abs(gains))[rows - owned.first]
    return Entries(slots, rows, columns, keys_of(scores, rows, "drop"))


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
    droppable = np.flatnonzero(~protected)
    chosen, _ = select(transport, plan.version, "drop", entries.keys[droppable])
    dropped = np.zeros(len(entries.rows), dtype=bool)
    dropped[droppable[chosen]] = True
    return dropped


def _drop_by_row(entries: Entries, live: Ints, plan: Plan, settings: SparsitySettings, first: int) -> Mask:
    quota = row_drops(live, plan.fraction, settings.budget.floor)
    return ranks_in_row(entries.rows, entries.keys, largest=False) < quota[entries.rows - first]


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
    new = without(candidates.rows, candidates.columns, entries.rows, entries.columns, owned.dims)
    rows, columns = candidates.rows[new], candidates.columns[new]
    with _told(transport, plan.version):
        keys = keys_of(candidates.scores[new], rows, "grow")
    fits = ranks_in_row(rows, keys, largest=True) < room[rows - owned.first]
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
    can = lost[ranks_in_row(rows, keys, largest=True) < back[rows - first]]
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
    free = np.flatnonzero(~owned.live)
    free_rows = owned.slot_rows()[free]
    # the i-th new entry of a row takes its i-th free slot
    first_free = np.searchsorted(free_rows, change.new_rows)
    first_new = np.searchsorted(change.new_rows, change.new_rows)
    target = free[first_free + np.arange(len(change.new_rows)) - first_new]
    owned.columns[target], owned.values[target] = change.new_columns, 0.0


def rescale_to_unit(owned: OwnedRows) -> None:
    """Give every row with a value length 1, in place; at unit rows a score does not depend on a row's length."""
    starts = owned.offsets[:-1]
    if not len(starts):
        return
    norms = np.sqrt(np.add.reduceat(owned.values.astype(np.float64) ** 2, starts))
    norms[norms == 0.0] = 1.0
    owned.values /= np.repeat(norms, np.diff(owned.offsets)).astype(np.float32)
