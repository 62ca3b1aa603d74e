"""Keys of a rank's slots, a block of rows at a time, so that what a rewire holds beside the table is bounded.

In: the owned rows and their gains. Out: blocks, each with the keys of its slots' drop scores; a key is 0 where a slot
is free, or where an earlier pass has crossed it out. Up to `KEPT_SLOTS` slots the keys are kept between passes; beyond,
a bit a slot is kept and the keys are made again in each pass: they would take half as much as the values and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hse_dist.sparsity.growth import Floats, Ints
from hse_dist.sparsity.selection import RESERVE_KEY, Keys, Selection
from hse_dist.sparsity.slots import drop_keys, take
from hse_dist.tables.sharded import OwnedRows

Bits = npt.NDArray[np.uint8]

BLOCK_SLOTS = 2**23
KEPT_SLOTS = 2**26
"""Slots of a rank whose keys are kept: 256 MiB."""


@dataclass
class Block:
    """Rows first … last − 1, counted from the rank's first; what is written into `rows` is written into the table."""

    first: int
    last: int
    rows: OwnedRows
    keys: Keys


class SlotKeys:
    """Keys of all slots; every pass over `blocks()` sees what `keep` left.

    Args:
        gains: float32 [rows].
        make: (a block's rows, their gains) → keys and live entries.
    """

    def __init__(
        self,
        owned: OwnedRows,
        gains: Floats,
        make: Callable[[OwnedRows, Floats], tuple[Keys, Ints]] = drop_keys,
    ) -> None:
        self.owned, self.gains, self._make = owned, gains, make
        bounds = np.searchsorted(owned.offsets, np.arange(0, owned.offsets[-1] + BLOCK_SLOTS, BLOCK_SLOTS))
        ends = np.unique(np.minimum(bounds, len(owned.offsets) - 1)).tolist()
        self._ranges = list(pairwise(ends))
        self._kept: dict[int, Keys] = {}
        self._bits: dict[int, Bits] = {}
        self._keep_keys = owned.offsets[-1] <= KEPT_SLOTS
        self.live = np.empty(len(owned.offsets) - 1, np.int64)

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Every block with its number.

        Raises:
            NumericError: names the row of the first score that is NaN or infinite.
        """
        for index, (first, last) in enumerate(self._ranges):
            owned, (begin, end) = self.owned, self.owned.offsets[[first, last]]
            offsets = owned.offsets[first : last + 1] - begin
            rows = OwnedRows(
                owned.first + first,
                owned.first + last,
                offsets,
                owned.by_place[begin:end].reshape(-1),
                owned.columns[begin:end],
                owned.dims,
                owned.block,
            )
            yield index, Block(first, last, rows, self._keys(index, rows, self.gains[first:last]))

    def _keys(self, index: int, rows: OwnedRows, gains: Floats) -> Keys:
        if index in self._kept:
            return self._kept[index]
        keys, live = self._make(rows, gains)
        if index in self._bits:
            keys *= np.unpackbits(self._bits[index], count=len(keys))
        else:
            first, last = self._ranges[index]
            self.live[first:last] = live
        return keys

    def keep(self, index: int, keys: Keys) -> None:
        """What later passes see of a block: what is not 0 in `keys`."""
        if self._keep_keys:
            self._kept[index] = keys
        else:
            self._bits[index] = np.packbits(keys != 0)

    def parts(self) -> Iterator[Keys]:
        """The keys of each block, in order."""
        for _, block in self.blocks():
            yield block.keys

    def narrow(self, narrow: Callable[[Block], None]) -> int:
        """Cross out what `narrow` sets to 0 in each block's keys; how many keys are left."""
        left = 0
        for index, block in self.blocks():
            narrow(block)
            self.keep(index, block.keys)
            left += int(np.count_nonzero(block.keys))
        return left

    def take(self, selection: Selection, *, largest: bool) -> Ints:
        """Cross out what a selection does not choose; how many of each row are chosen, int64 [rows]."""
        counts = np.empty(len(self.live), np.int64)
        (quota,) = selection.quotas
        for index, block in self.blocks():
            part = replace(selection, quotas=(quota,))
            counts[block.first : block.last] = take(block.rows, block.keys, part, largest=largest)
            if selection.count:
                # ties go to the first rows
                quota -= int(np.count_nonzero(block.keys == selection.threshold))
            self.keep(index, block.keys)
        return counts

    def scored(self) -> Ints:
        """Keys of each row that are of a score, int64 [rows]."""
        found = np.empty(len(self.live), np.int64)
        for _, block in self.blocks():
            ends = np.concatenate([[0], np.cumsum(block.keys - np.uint32(1) < RESERVE_KEY - 1)])
            found[block.first : block.last] = np.diff(ends[block.rows.offsets])
        return found

    def marks(self) -> list[Bits]:
        """A bit a slot, of each block: which have a key."""
        if not self._keep_keys:
            return [self._bits[index] for index in range(len(self._ranges))]
        return [np.packbits(keys != 0) for keys in self.parts()]


def count_live(owned: OwnedRows) -> int:
    """Live entries, counted without a mask as long as the table."""
    parts = range(0, len(owned.columns), BLOCK_SLOTS)
    return sum(int(np.count_nonzero(owned.columns[first : first + BLOCK_SLOTS] < owned.dims)) for first in parts)
