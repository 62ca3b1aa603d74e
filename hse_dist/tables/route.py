"""The way of a lookup between ranks: ids to the ranks that hold their rows, rows back, and gradients after them.

In: ids, and collections that are placed alike. Out: a tensor of rows a collection. TorchRec's `forward` sends the ids
once a collection; here one input distribution serves all of them (values and columns of a chunk lie on the same rank),
and it may begin long before the rows are wanted: ids do not depend on what a step changes, so nothing gets stale.
These are the same three calls that TorchRec's own train pipeline makes.

What goes to other ranks is counted where the splits of the collectives are known, that is here; but for how many ids
each rank may expect, which is a few bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from hse_dist.ranks import Ranks
from hse_dist.tables.codecs import Codec

FEATURE = "item"
IDS_A_BAG = {"cpu": 2**31, "cuda": 32}
"""A lookup's ids travel as bags, of which a GPU's kernels take one a warp, one id after the other: 8 192 ids in one bag
took 2 ms to look up and 2 ms to sort by rank. Lengths of bags travel too, to every rank, so that on many ranks bags are
larger; what comes of one to a rank is a part of it."""


@dataclass(frozen=True)
class Reading:
    """What to read: a sharded collection, its kind for the meter, its width and its codecs."""

    collection: Any
    kind: str
    width: int
    forward: Codec
    backward: Codec


class Route:
    """Ids on their way. To make one is a collective call, as is every method.

    Args:
        collection: any sharded collection of the placement.
        ids: int64 [N], below `count`, the same on all ranks; they travel in four bytes where that allows it.
    """

    def __init__(self, collection: Any, ids: Tensor, count: int, ranks: Ranks) -> None:
        self.ids, self._ranks = ids, ranks
        self._type = torch.int32 if count < 2**31 else torch.int64
        self._context = collection.create_context()
        lengths = bags(len(ids), max(IDS_A_BAG[ids.device.type], ranks.size)).to(ids.device, self._type)
        self._bags = len(lengths)
        features = KeyedJaggedTensor(keys=[FEATURE], values=ids.to(self._type), lengths=lengths)
        self._counts: Any = collection.input_dist(self._context, features)
        self._sent: Any = None
        self._there: Any = None

    def advance(self) -> None:
        """Wait until the ranks know how many ids to expect, and send the ids."""
        if self._counts is not None:
            self._sent, self._counts = self._counts.wait(), None

    def read(self, reading: Reading) -> Tensor:
        """The rows [N, width]."""
        answer = reading.collection.compute_and_output_dist(self._context, self._arrive())
        self._count(reading)
        return answer[FEATURE].values()

    def _arrive(self) -> Any:
        if self._there is None:
            self.advance()
            self._there, self._sent = self._sent.wait(), None
            out, _ = self._splits()
            lengths = (self._bags - 1) * (self._ranks.size - 1)
            self._ranks.meter.add("ids", (out + lengths) * self._type.itemsize)
        return self._there

    def _splits(self) -> tuple[int, int]:
        """How many ids went from this rank to others, and came from others to this one."""
        (context,) = self._context.sharding_contexts
        out, back = (
            sum(count for rank, count in enumerate(splits) if rank != self._ranks.rank)
            for splits in (context.input_splits, context.output_splits)
        )
        return out, back

    def _count(self, reading: Reading) -> None:
        out, back = self._splits()
        self._ranks.meter.add(reading.kind, reading.forward.bytes_of(back * reading.width))
        if torch.is_grad_enabled():
            kind = "gains" if reading.kind == "gains" else "gradients"
            self._ranks.meter.add(kind, reading.backward.bytes_of(out * reading.width))


def bags(count: int, most: int) -> Tensor:
    """Lengths int64 of bags of `most` ids, of which the last has what is left; one bag at least."""
    lengths = torch.full((max(1, -(-count // most)),), min(most, count))
    lengths[-1] = count - (len(lengths) - 1) * most if count else 0
    return lengths
