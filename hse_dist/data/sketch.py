"""A count-min sketch of item ids: which of them may have enough interactions, in memory that no catalogue changes.

In: ids of items, an interaction each. Out: of any id, whether it *may* occur `least` times. The answer is never a wrong
no: a counter is shared by several ids, so that it may be too large and never too small.

Cormode & Muthukrishnan, *An Improved Data Stream Summary: The Count-Min Sketch and its Applications* (J. Algorithms
2005), §3 and §4.1: `DEPTH` rows of `width` counters and a hash a row; the estimate is the least of an id's counters.
With ε = e / width and δ = e^−DEPTH, an estimate is more than ε · N too large with probability at most δ, where N is the
number of interactions. Two things differ, and neither changes an answer: a counter stops at `least`, since more decides
nothing (so it has one byte where `least` is below 256), and of the sum of the sketches only a bit a counter is kept,
whether it has reached `least`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from hse_dist.data.grouping import Part
from hse_dist.data.hashing import bucket_of, hash_ids, mix, seed_word

DEPTH = 4
"""Rows of counters."""
ITEM_SEED = 0x61646D6974
"""Seed of the hash of item ids: fixed, and of nothing else."""
MOST_CELLS = 1 << 32
"""Counters of a row, which hashes of 32 bits reach."""
MERGED = 1 << 20
"""Counters that are added up at a time; a multiple of 8."""


def _cells(hashes: np.ndarray, row: int, width: int) -> np.ndarray:
    """The counter of each id in a row of counters, uint32 [n]."""
    return bucket_of(mix(hashes ^ seed_word(row)), width).astype(np.uint32)  # which sort faster than int64


class Sketch:
    """Counters of one task.

    Args:
        size: bytes for all counters.
        least: what counters count up to.
    """

    def __init__(self, size: int, least: int) -> None:
        kind = np.min_scalar_type(least)
        width = max(8, size // (DEPTH * kind.itemsize) // 8 * 8)
        self._counts = np.zeros((DEPTH, min(width, MOST_CELLS)), kind)
        self._least = least

    def add(self, ids: pa.Array) -> None:
        """Count an interaction of each of the ids: int64 or large_string [n], without nulls."""
        hashes = hash_ids(ids, ITEM_SEED)
        for row, counts in enumerate(self._counts):
            cells = _cells(hashes, row, len(counts))
            cells, times = np.unique(cells[counts[cells] < self._least], return_counts=True)
            counts[cells] = np.minimum(counts[cells] + times, self._least)

    def save(self, path: str) -> None:
        np.save(path, self._counts)


def merge(sketches: Sequence[str], least: int, path: Path) -> None:
    """Write which counters reach `least` in the sum of the sketches; it does not depend on who counted what.

    Args:
        sketches: files of sketches of one size. path: for uint8 [DEPTH, width / 8], what `Admitted` reads.
    """
    depth, width = np.load(sketches[0], mmap_mode="r").shape
    bits = np.empty((depth, width // 8), np.uint8)
    for row in range(depth):
        for first in range(0, width, MERGED):
            total = np.zeros(min(MERGED, width - first), np.int64)
            for sketch in sketches:  # mapped a piece at a time: this process would hold all of it otherwise
                total += np.load(sketch, mmap_mode="r")[row, first : first + MERGED].astype(np.int64)
            bits[row, first // 8 : (first + MERGED) // 8] = np.packbits(total >= least, bitorder="little")
    np.save(path, bits)


class Admitted:
    """Which ids may have `least` interactions: all that have, and some others.

    Args:
        path: of what `merge` wrote.
    """

    def __init__(self, path: str | Path) -> None:
        self._bits = np.load(path)
        self.nbytes: int = self._bits.nbytes

    def mask(self, ids: pa.Array) -> np.ndarray:
        """Whether each id is one of them, bool [n]; ids as in `Sketch.add`."""
        hashes, found = hash_ids(ids, ITEM_SEED), np.ones(len(ids), bool)
        for row, bits in enumerate(self._bits):
            cells = _cells(hashes, row, 8 * len(bits))
            found &= (bits[cells >> 3] >> (cells & 7).astype(np.uint8) & 1).astype(bool)
        return found

    def of_batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The interactions of such items."""
        return batch.filter(pa.array(self.mask(batch.column("item"))))

    def of_part(self, part: Part) -> tuple[Part, np.ndarray]:
        """Histories of such items alone, without users who have none; and the mask of the part's items, bool [I]."""
        mask = self.mask(part.items)
        keep = mask[part.codes]
        offsets = np.concatenate([[0], np.cumsum(keep)])[part.offsets]
        there = np.diff(offsets) > 0
        places = np.cumsum(mask) - 1
        return Part(
            part.users.filter(pa.array(there)),
            part.items.filter(pa.array(mask)),
            np.concatenate([[0], offsets[1:][there]]),
            places[part.codes[keep]].astype(np.int32),
        ), mask
