"""In which order an epoch's users come, whatever the number of ranks.

In: the users of each row group, the settings and (seed, epoch). Out: a list of blocks, each a few slices of shuffled
windows.

Row groups are shuffled and cut into windows; windows are dealt out to lanes; a lane's users, window after window, are
cut into blocks; blocks are taken from the lanes in turn, and a lane that has ended is passed over. In round t of N
ranks, rank r takes block t·N + r. While all lanes last and N divides their number, a rank stays in its lanes, so that
nothing is read twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hse_dist.config import StreamSettings

GROUPS, USERS = 0, 1
"""Which shuffle a generator is for; part of its key."""


@dataclass(frozen=True)
class Slice:
    """Users first … last − 1 of a shuffled window."""

    lane: int
    window: int
    first: int
    last: int


class EpochOrder:
    """The blocks of one epoch."""

    def __init__(self, users: Sequence[int], settings: StreamSettings, batch_size: int, seed: int, epoch: int) -> None:
        self._seed, self._epoch, self._batch = seed, epoch, batch_size
        shuffled = np.random.default_rng([seed, epoch, GROUPS]).permutation(len(users))
        self.windows = [shuffled[i : i + settings.window] for i in range(0, len(shuffled), settings.window)]
        sizes = np.array([np.asarray(users)[window].sum() for window in self.windows], np.int64)
        self._lanes = min(settings.lanes, len(self.windows))
        self._ends = [np.cumsum(sizes[lane :: self._lanes]) for lane in range(self._lanes)]
        blocks = [-(-int(ends[-1]) // batch_size) for ends in self._ends]
        lane = np.repeat(np.arange(self._lanes), blocks)
        turn = np.concatenate([np.zeros(0, np.int64), *(np.arange(count) for count in blocks)])
        order = np.lexsort((lane, turn))
        self._lane, self._turn = lane[order], turn[order]

    def __len__(self) -> int:
        """Blocks in the epoch."""
        return len(self._lane)

    def block(self, index: int) -> list[Slice]:
        """The slices whose users, in turn, are the block; `batch_size` users, fewer at the end of a lane."""
        lane, start = int(self._lane[index]), int(self._turn[index]) * self._batch
        ends = self._ends[lane]
        stop = min(start + self._batch, int(ends[-1]))
        slices = []
        for place in range(int(np.searchsorted(ends, start, side="right")), len(ends)):
            first = int(ends[place - 1]) if place else 0
            slices.append(
                Slice(lane, lane + place * self._lanes, max(start - first, 0), min(stop, int(ends[place])) - first)
            )
            if stop <= ends[place]:
                break
        return slices

    def shuffle(self, window: int, users: int) -> np.ndarray:
        """Order of a window's users, int64 [users]."""
        return np.random.default_rng([self._seed, self._epoch, USERS, window]).permutation(users)
