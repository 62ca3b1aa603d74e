"""One rank's training input: histories of the training users in an order that all ranks agree on.

In: a prepared folder. Out: epochs of `HistoryBlock`s, one a step, or what a function makes of them. The order is that
of `order.py`, a pure function of (seed, epoch); the position is the number of blocks that all ranks together have
consumed. Therefore a state taken on N ranks can be resumed on any other number, at exactly the next block.

A thread reads ahead and makes the batches, over the end of an epoch too: validation and checkpoints there are its time
to open the next windows.

Every rank gives the same number of blocks: the last round is filled with empty ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

from hse_dist.config import StreamSettings
from hse_dist.data.checked import CheckedFiles
from hse_dist.data.order import EpochOrder, Slice
from hse_dist.data.prefetch import prefetch
from hse_dist.data.prepared import HistoryBlock, Prepared, no_histories
from hse_dist.errors import DataError

Item = TypeVar("Item")
VERSION = 1


class HistoryStream:
    """Blocks of training users for rank `rank` of `ranks`, with the values of `features` of users.

    Attributes:
        epoch_number: of the next block; rises when an epoch's last block is handed out.
        blocks: consumed in this epoch by all ranks together.
        batches_per_epoch: blocks a rank in the whole present epoch, the same on all ranks.
        files: those that it reads, and what is wrong with them.

    Raises:
        DataError: a file of the prepared folder cannot be read, or changed, and is not to be left out; there are no
            training users.
    """

    def __init__(
        self,
        prepared: Prepared,
        settings: StreamSettings,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        ranks: int,
        on_bad_file: str = "stop",
        features: Sequence[str] = (),
    ) -> None:
        self.files, self._settings = CheckedFiles(prepared, on_bad_file, features), settings
        self._empty = no_histories(0, features)
        self._batch, self._seed, self._rank, self._ranks = batch_size, seed, rank, ranks
        self._groups = prepared.row_groups("train")
        if not self._groups:
            raise DataError(f"The prepared folder {prepared.folder} has no training users.")
        self.epoch_number = self.blocks = 0
        self._order = self._order_of(0)

    @property
    def batches_per_epoch(self) -> int:
        return self.batches_in(self.epoch_number)

    def batches_in(self, epoch: int) -> int:
        """Blocks a rank in a whole epoch; where row groups differ in size, epochs may differ by a few blocks."""
        return -(-len(self._order if epoch == self.epoch_number else self._order_of(epoch)) // self._ranks)

    @property
    def batches_left(self) -> int:
        """Blocks that are left for this rank in the present epoch."""
        return -(-(len(self._order) - self.blocks) // self._ranks)

    def read(self, epochs: int, make: Callable[[HistoryBlock, int], Item]) -> Generator[tuple[Item, Item | None]]:
        """What `make` gives of every block from the present position to the end of epoch `epochs` − 1, each together
        with the one that follows (None after the last).

        A thread reads and makes ahead. The position counts a block as consumed when what was made of it is handed out
        for the first of the two.
        Closing the iterator ends the thread and keeps the position, so that the next call goes on with the next block.

        Args:
            make: of a block and its place in this call, 0, 1, …; runs in the thread, so it must not depend on when.
        """
        ahead = (make(block, place) for place, block in enumerate(self._blocks(self.epoch_number, self.blocks, epochs)))
        items = prefetch(ahead, self._settings.prefetch, f"stream of rank {self._rank}")
        try:
            item = next(items, None)
            while item is not None:
                following = next(items, None)
                self.blocks = min(self.blocks + self._ranks, len(self._order))
                if self.blocks == len(self._order):
                    self._start_epoch(self.epoch_number + 1)
                yield item, following
                item = following
        finally:
            items.close()  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """Position and what it is a position in; JSON-able, the same on all ranks."""
        return {"epoch": self.epoch_number, "blocks": self.blocks, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position of a stream over the same data with the same settings, on any number of ranks.

        Raises:
            DataError: the state is of another stream; names what differs.
        """
        identity = self._identity()
        wrong = [
            f"{key} is {state.get(key)!r}, here {value!r}" for key, value in identity.items() if state.get(key) != value
        ]
        if wrong:
            raise DataError(
                f"The data position does not fit this run: {'; '.join(wrong)}.",
                cause="Resume with the settings and the prepared folder of the checkpoint.",
            )
        self._start_epoch(int(state["epoch"]))
        if not 0 <= int(state["blocks"]) < len(self._order):
            raise DataError(f"The data position {state['blocks']} is outside of an epoch of {len(self._order)} blocks.")
        self.blocks = int(state["blocks"])

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps(self._groups).encode()).hexdigest()[:16]
        return {
            "version": VERSION,
            "seed": self._seed,
            "batch_size": self._batch,
            "window": self._settings.window,
            "lanes": self._settings.lanes,
            "row_groups": digest,
        }

    def _start_epoch(self, epoch: int) -> None:
        self._order = self._order_of(epoch)
        self.epoch_number, self.blocks = epoch, 0

    def _order_of(self, epoch: int) -> EpochOrder:
        return EpochOrder([users for _, _, users in self._groups], self._settings, self._batch, self._seed, epoch)

    def _blocks(self, epoch: int, start: int, epochs: int) -> Iterator[HistoryBlock]:
        """This rank's blocks from block `start` of an epoch on; runs in the thread and leaves the position alone."""
        while epoch < epochs:
            order = self._order_of(epoch)
            windows = _Windows(self.files, self._groups, order)
            for first in range(start, len(order), self._ranks):
                index = first + self._rank
                pieces = order.block(index) if index < len(order) else []
                yield HistoryBlock.concatenate([windows.users(piece) for piece in pieces]) if pieces else self._empty
            epoch, start = epoch + 1, 0


class _Windows:
    """Shuffled windows, one held a lane."""

    def __init__(self, files: CheckedFiles, groups: list[tuple[str, int, int]], order: EpochOrder) -> None:
        self._files, self._groups, self._order = files, groups, order
        self._held: dict[int, tuple[int, HistoryBlock]] = {}

    def users(self, piece: Slice) -> HistoryBlock:
        held = self._held.get(piece.lane)
        if held is None or held[0] != piece.window:
            held = self._held[piece.lane] = (piece.window, self._load(piece.window))
        return held[1].slice(piece.first, piece.last)

    def _load(self, window: int) -> HistoryBlock:
        read = [self._files.read(*self._groups[group]) for group in self._order.windows[window]]
        whole = HistoryBlock.concatenate(read)
        return whole.take(self._order.shuffle(window, len(whole)))
