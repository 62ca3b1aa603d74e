"""Which positions of a row may be live together: whole blocks of adjacent columns, or n of every m.

Blocks (Hoefler et al., arXiv 2102.00554, §2.2 and §3.7, on structured sparsity) change what a *place* of a row is, and
nothing else: a rewire drops, grows and restores places, and counts them. `block_positions` makes positions with scores
into places with one score each.

N:M (Mishra et al., *Accelerating Sparse Deep Neural Networks*, arXiv 2104.08378; here for any M, of rows that use few
of their groups) limits what may grow and come back. Groups lie within rows, and rows within the table, so taking the
strongest that fit a group, of these the strongest that fit the row, and of these the strongest of all is the best
choice under all limits. What was dropped always suffices to restore the count: of a group there can come back as many
as went less those that grew in it.
"""

from __future__ import annotations

import numpy as np

from hse_dist.config import SparsitySettings, StructureSettings
from hse_dist.sparsity.growth import Floats, Ints
from hse_dist.sparsity.selection import Keys
from hse_dist.sparsity.slot_keys import Block, SlotKeys
from hse_dist.sparsity.slots import groups
from hse_dist.sparsity.strongest import keep_strongest


def row_limits(settings: SparsitySettings) -> tuple[int, int]:
    """Floor and ceiling of a row, in places."""
    unit, budget = settings.structure.unit, settings.budget
    return -(-budget.floor // unit), budget.ceiling // unit


def block_positions(rows: Ints, columns: Ints, scores: Floats, block: int) -> tuple[Ints, Ints, Floats]:
    """Positions as blocks with the length of their scores: rows, block numbers int64, scores float32 [n].

    Args:
        rows, columns: int64 [n], by row, then column; what is missing of a block counts as 0.
    """
    if block == 1 or not len(rows):
        return rows, columns, scores
    numbers = columns // block
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(rows) != 0) | (np.diff(numbers) != 0)]))
    lengths = np.sqrt(np.add.reduceat(scores.astype(np.float64) ** 2, starts))
    return rows[starts], numbers[starts], lengths.astype(np.float32)


class Groups:
    """Groups of m adjacent columns, of which a row may have n live entries.

    Args:
        dims: D.
    """

    def __init__(self, structure: StructureSettings, dims: int) -> None:
        self.most, self.columns = structure.n, structure.m
        self._a_row = -(-dims // structure.m)

    def of(self, rows: Ints, columns: Ints) -> Ints:
        """A number a group, in the order of rows and columns."""
        return rows * self._a_row + columns // self.columns

    def limit_growth(self, keys: SlotKeys, rows: Ints, columns: Ints, scores: Keys) -> None:
        """Set the scores' keys of all positions to 0 but the strongest that fit their groups, in place.

        Args:
            keys: of what is dropped. rows, columns: int64 [n], by row, then column. scores: uint32 [n].
        """
        starts, wanted = groups(self.of(rows, columns))
        left = np.zeros(len(wanted), np.int64)
        for _, block in keys.blocks():
            found = self._left(block)
            left += np.searchsorted(found, wanted, side="right") - np.searchsorted(found, wanted)
        keep_strongest(starts, scores, columns.astype(np.int32), np.maximum(self.most - left, 0), largest=True)

    def limit_return(self, block: Block, grown: Ints) -> None:
        """Set the keys of all dropped entries to 0 but the strongest that fit their groups, in place.

        Args:
            grown: groups of what has grown, int64 [n], ascending.
        """
        here = np.flatnonzero(block.keys)
        of_entry = self._groups_at(block, here)
        order = np.lexsort((block.rows.columns[here], of_entry))
        here, of_entry = here[order], of_entry[order]
        starts, wanted = groups(of_entry)
        full = np.zeros(len(wanted), np.int64)
        for found in (self._left(block), grown):
            full += np.searchsorted(found, wanted, side="right") - np.searchsorted(found, wanted)
        keys = block.keys[here]
        limits = np.maximum(self.most - full, 0)
        keep_strongest(starts, keys, block.rows.columns[here], limits, largest=True)
        block.keys[here] = keys

    def _left(self, block: Block) -> Ints:
        """Groups of the live entries of a block of rows that are not dropped, ascending."""
        return np.sort(self._groups_at(block, np.flatnonzero(block.rows.live & (block.keys == 0))))

    def _groups_at(self, block: Block, slots: Ints) -> Ints:
        rows = np.searchsorted(block.rows.offsets, slots, side="right") - 1 + block.rows.first
        return self.of(rows, block.rows.columns[slots].astype(np.int64))
