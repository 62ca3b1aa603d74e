"""One rewire: drop, grow, restore.

In: the rows that this rank owns, growth candidates of these rows, and the server. Out: the same rows with other live
entries, as many on all ranks together as the schedule says. Pure but for the conversation with the server. What is as
long as the table is the keys of its slots (`slots.py`), which each part of the rewire narrows down; ties go by the
canonical order (row, then column). Where blocks of columns are live together, all that is said of entries and slots is
said of these (`structure.py`).

Equal tables and an equal multiset of gradients give bit-equal tables, whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from hse_dist.config import SparsitySettings
from hse_dist.errors import NumericError
from hse_dist.sparsity.budget import row_drops, rows_compete
from hse_dist.sparsity.client import Transport, select
from hse_dist.sparsity.criteria import Evidence, score_keys, weigh
from hse_dist.sparsity.growth import Floats, Ints, random_positions
from hse_dist.sparsity.messages import Close, Closed, Failed, Open, Plan
from hse_dist.sparsity.selection import Selection, chosen
from hse_dist.sparsity.shrink import freed_below, shrink
from hse_dist.sparsity.slot_keys import Block, SlotKeys, count_live
from hse_dist.sparsity.slots import find_live, free, groups, keys_of, place
from hse_dist.sparsity.strongest import keep_strongest
from hse_dist.sparsity.structure import Groups, row_limits
from hse_dist.tables.sharded import OwnedRows

Observe = Callable[[OwnedRows, Ints], dict[str, Any]]


@dataclass(frozen=True)
class Candidates:
    """Positions that could grow, in canonical order: rows, columns (numbers of blocks) int64 [n], scores float32 [n],
    of which the size counts."""

    rows: Ints
    columns: Ints
    scores: Floats


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
    evidence: Evidence | None = None,
    observe: Observe | None = None,
) -> Closed:
    """Rewire `owned` in place together with the other ranks.

    Args:
        gains: of the owned rows, float32 [rows].
        candidates: positions of owned rows with their growth scores; None draws random ones.
        version: of the tables now.
        step: of the run, for the schedule.
        visits: of owned rows by ranks and steps since the last rewire, for the journal.
        evidence: what the drop scores need beside values and gains; magnitude needs none.
        observe: (rows after the rewire, positions that grew) → more for the journal, of all ranks; may be collective.

    Returns:
        the new version, and what the journal says of it.

    Raises:
        NumericError: a value or a score of some rank is NaN or infinite; names the row, on all ranks.
        ProtocolError: the ranks disagree.
    """
    evidence, (floor, _) = evidence or Evidence(), row_limits(settings)
    grouped = Groups(settings.structure, owned.dims) if settings.structure.kind == "n_of_m" else None
    gains = weigh(gains, evidence)
    keys = SlotKeys(owned, gains, score_keys(settings.drop, evidence, seed, version + 1))
    with _told(transport, version + 1):
        competing = keys.narrow(lambda block: _protect(block, floor))
    live = keys.live
    by_live = None if rows_compete(settings.budget) else np.bincount(live)
    droppable = int(keys.scored().sum()) if evidence.reserve else competing
    plan = transport.ask(Open(version + 1, step, owned.first, int(live.sum()), droppable, by_live))
    then = live if plan.rows is None else plan.rows.of(live)
    dropped, selection = _drop(keys, then, plan, transport, settings)
    room, limit = _room(owned, live, then, dropped, settings)
    if candidates is None:
        wanted = np.minimum(room, 0 if settings.grow.kind == "none" else settings.grow.explore)
        rows = np.arange(owned.first, owned.last)
        candidates = Candidates(*random_positions(rows, wanted, owned.dims, seed, plan.version))
    new_rows, new_columns, offered = _grow(keys, room, candidates, plan, transport, settings, grouped)
    limit = limit - np.bincount(new_rows - owned.first, minlength=len(room))
    grown = None if grouped is None else grouped.of(new_rows, new_columns)
    back = _Return(np.minimum(dropped, limit), grouped, grown)
    restored = _restore(keys, back, plan, transport, settings, selection)
    place(owned, new_rows, new_columns)
    closed: Closed = transport.ask(
        Close(
            version=plan.version,
            step=step,
            live=count_live(owned),
            dropped=int(dropped.sum()),
            grown=len(new_rows),
            restored=restored,
            visits=visits,
            offered=offered,
            facts=observe(owned, new_rows * owned.dims + new_columns) if observe is not None else {},
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


def _protect(block: Block, floor: int) -> None:
    limits = np.full(block.last - block.first, floor)
    keep_strongest(block.rows.offsets, block.keys, block.rows.columns, limits, largest=True, others=True)


def _drop(
    keys: SlotKeys, then: Ints, plan: Plan, transport: Transport, settings: SparsitySettings
) -> tuple[Ints, Selection | None]:
    """Leave the keys of what is dropped; how many each row loses, int64 [rows], and the decision of all rows.

    Args:
        then: live entries of each row afterwards, where rows keep their own number.
    """
    if rows_compete(settings.budget):
        selection = select(transport, plan.version, "drop", keys.parts)
        return keys.take(selection, largest=False), selection
    fewer, moved = keys.live - then, row_drops(then, plan.fraction, row_limits(settings)[0])
    quota = fewer + np.clip(keys.scored() - fewer, 0, moved)
    keys.narrow(lambda block: _strongest(block, quota, largest=False))
    return quota, None


def _strongest(block: Block, limits: Ints, *, largest: bool) -> None:
    rows = block.rows
    keep_strongest(rows.offsets, block.keys, rows.columns, limits[block.first : block.last], largest=largest)


def _room(owned: OwnedRows, live: Ints, then: Ints, dropped: Ints, settings: SparsitySettings) -> tuple[Ints, Ints]:
    """How many entries each row may take up after the drop, int64 [rows]: by growth, and by growth and return.

    A row above the ceiling (of an earlier configuration) may go back to where it was, but does not grow.
    """
    if not rows_compete(settings.budget):
        return then - live + dropped, then - live + dropped
    ceiling = np.minimum(np.diff(owned.offsets), row_limits(settings)[1])
    left = live - dropped
    return np.maximum(ceiling - left, 0), np.maximum(ceiling, live) - left


def _grow(
    slots: SlotKeys,
    room: Ints,
    candidates: Candidates,
    plan: Plan,
    transport: Transport,
    settings: SparsitySettings,
    grouped: Groups | None,
) -> tuple[Ints, Ints, int]:
    """What grows, in canonical order: of each row the strongest positions that fit, of these the strongest of all; and
    how many there were to choose from."""
    owned = slots.owned
    new = ~find_live(owned, candidates.rows, candidates.columns)
    rows, columns = candidates.rows[new], candidates.columns[new]
    with _told(transport, plan.version):
        keys = keys_of(np.abs(candidates.scores[new]), rows, "grow")
    if grouped is not None:
        grouped.limit_growth(slots, rows, columns, keys)
    starts, of_group = groups(rows)
    keep_strongest(starts, keys, columns.astype(np.int32), room[of_group - owned.first], largest=True)
    fits = keys != 0
    rows, columns, keys = rows[fits], columns[fits], keys[fits]
    if rows_compete(settings.budget):
        taken = chosen(keys, select(transport, plan.version, "grow", lambda: [keys]), 0, largest=True)
        rows, columns = rows[taken], columns[taken]
    return rows, columns, int(np.count_nonzero(new))


@dataclass(frozen=True)
class _Return:
    """What may return of what was dropped: `most` of each row, int64 [rows], and as many of its groups of columns as
    what has `grown` there (int64 [n], ascending) leaves room for."""

    most: Ints
    grouped: Groups | None
    grown: Ints | None

    def narrow(self, block: Block) -> None:
        """Leave the keys of the strongest that may return."""
        if self.grouped is not None and self.grown is not None:
            self.grouped.limit_return(block, self.grown)
        _strongest(block, self.most, largest=True)


def _restore(
    keys: SlotKeys,
    back: _Return,
    plan: Plan,
    transport: Transport,
    settings: SparsitySettings,
    drop: Selection | None,
) -> int:
    """Free the slots of what was dropped, but for the strongest of what may return, that return so that the count is
    what it was; how many do.

    Args:
        drop: the decision of all rows.
    """
    dropped, threshold = keys.marks(), None
    keys.narrow(back.narrow)
    if drop is not None:
        selection = select(transport, plan.version, "restore", keys.parts)
        restored = keys.take(selection, largest=True)
        threshold = freed_below(drop, selection)
    else:
        restored = back.most
    for index, block in keys.blocks():
        marks = np.unpackbits(dropped[index], count=len(block.keys)).astype(np.uint32)
        if settings.drop.kind == "soft_threshold":
            freed = (marks != 0) & (block.keys == 0)
            shrink(block.rows, keys.gains[block.first : block.last], freed, threshold)
        free(block.rows, marks, block.keys)
    return int(restored.sum())
