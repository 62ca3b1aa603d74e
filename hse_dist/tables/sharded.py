"""A logical table spread over the ranks: lookup, fused update, and the local shard.

In: an unsharded collection, a plan, the ranks. Out: `ShardedTable`, whose `lookup` is a collective call that gives the
rows of this rank's candidates, and whose update happens inside the backward pass.

Rows are owned by the rank that holds their first chunk. Under ROW_WISE a row may run on into the next shard: at most
ranks − 1 rows do. `owned()` gathers such a row's other chunks to its owner and `put_back` returns them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv

from hse_dist.config import TrainSettings
from hse_dist.ranks import Ranks
from hse_dist.tables.block import DenseRows, SparseRows
from hse_dist.tables.collection import GAIN_WIDTH, DenseCollection, PackedCollection
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.plan import local_device, make_plan, make_sharders, shard_ranges

COUNTED_AT_A_TIME = 2**18
"""Chunks whose live entries are counted at once."""


@dataclass
class OwnedRows:
    """The rows first … last − 1 of one owner, slot by slot, in row order; numpy, on the host.

    Attributes:
        offsets: int64 [rows + 1], first slot of each row.
        values: float32 [slots]; 0 where the slot is free.
        columns: int32 [slots]; `dims` where the slot is free.
    """

    first: int
    last: int
    offsets: np.ndarray
    values: np.ndarray
    columns: np.ndarray
    dims: int

    @property
    def live(self) -> np.ndarray:
        """Which slots are live, bool [slots]."""
        return self.columns < self.dims

    def slot_rows(self) -> np.ndarray:
        """The table row of each slot, int64 [slots]."""
        return np.repeat(np.arange(self.first, self.last), np.diff(self.offsets))


class ShardedTable:
    """A packed or dense table under `DistributedModelParallel`; every method but `set_rates` is a collective call."""

    def __init__(self, collection: nn.Module, ranks: Ranks, train: TrainSettings, sharding: str) -> None:
        sharders = make_sharders(train)
        plan = make_plan(collection, sharders, ranks, sharding)
        self.ranks, self.plan = ranks, plan
        self.ranges = shard_ranges(plan, "values", ranks.size)
        self.module = DistributedModelParallel(
            collection,
            env=ShardingEnv.from_process_group(torch.distributed.group.WORLD),
            device=local_device(ranks.device),
            plan=plan,
            sharders=sharders,
            init_data_parallel=False,
        )
        self.warm_accumulator = train.warm_accumulator
        self.fill_accumulators(train.warm_accumulator)

    def lookup(self, rows: Tensor) -> SparseRows | DenseRows:
        """The rows int64 [C] of this rank's candidates; gradients flow back into the fused update."""
        return self.module(rows)

    def wire_bytes(self, rows: Tensor) -> int:
        """Payload that the lookup and update of `rows` move between this rank and others, in bytes: ids (int64) out,
        weights (float32) in, gradients (float32) out."""
        return _remote_bytes(rows, self.ranges[self.ranks.rank], self.local_values().shape[1], weights=1)

    def set_rates(self, values: float, gains: float) -> None:
        """The learning rates of the next update."""
        for name, optimizer in self.module.fused_optimizer.optimizers:
            if name == "columns":
                continue
            for group in optimizer.param_groups:
                group["lr"] = gains if name == "gains" else values
            optimizer.zero_grad()  # hands the rate to the fused kernel; there is no gradient to clear

    def fill_accumulators(self, value: float) -> None:
        """Set every accumulator of the fused optimizer on this rank to `value`."""
        for state in self.module.fused_optimizer.state_dict()["state"].values():
            for tensor in state.values():
                for shard in tensor.local_shards():
                    shard.tensor.fill_(value)

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer state, sharded, for torch.distributed.checkpoint; the tensors are the live ones."""
        optimizer = self.module.fused_optimizer.state_dict()["state"]
        states = {name: state for name, state in optimizer.items() if state}
        # an empty dictionary would be an entry that ranks with a state do not have
        return {"model": self.module.state_dict(), **({"optimizer": states} if states else {})}

    def _local(self, name: str) -> Tensor:
        """This rank's shard of the collection `name`, [n, width]; empty where it holds none."""
        (weight,) = (value for key, value in self.module.state_dict().items() if key.startswith(f"{name}."))
        shards = weight.local_shards()
        return shards[0].tensor if shards else torch.empty(0, weight.metadata().size[1], device=self.ranks.device)

    def local_values(self) -> Tensor:
        """This rank's shard of the values: float32 [chunks, w], or [rows, D] of a dense table."""
        return self._local("values")


class DenseTable(ShardedTable):
    """The dense baseline."""

    def __init__(self, rows: int, dims: int, ranks: Ranks, train: TrainSettings, sharding: str) -> None:
        super().__init__(DenseCollection(rows, dims), ranks, train, sharding)
        self.rows, self.dims = rows, dims

    def live_entries(self) -> int:
        """All entries of the table."""
        return self.rows * self.dims


class PackedTable(ShardedTable):
    """Rows of live entries in chunks."""

    def __init__(
        self, layout: RowLayout, dims: int, ranks: Ranks, train: TrainSettings, sharding: str, *, with_gains: bool
    ) -> None:
        layout = RowLayout(layout.offsets.to(ranks.device), layout.width)
        super().__init__(PackedCollection(layout, dims, with_gains=with_gains), ranks, train, sharding)
        self.layout, self.dims, self.rows, self.with_gains = layout, dims, layout.rows, with_gains
        self.row_ranges = [layout.rows_starting_in(*chunks) for chunks in self.ranges]

    def wire_bytes(self, rows: Tensor) -> int:
        chunk_ids, _ = self.layout.chunks_of(rows)
        payload = _remote_bytes(chunk_ids, self.ranges[self.ranks.rank], self.layout.width, weights=2)
        if self.with_gains:
            mine = shard_ranges(self.plan, "gains", self.ranks.size)[self.ranks.rank]
            payload += _remote_bytes(rows, mine, GAIN_WIDTH, weights=1)
        return payload

    def local_columns(self) -> Tensor:
        """This rank's shard of the columns: float32 [chunks, w], `dims` in free slots."""
        return self._local("columns")

    def live_entries(self) -> int:
        """Live entries of the whole table."""
        # in blocks: a sum of marks makes whole numbers of them first, eight bytes a slot
        parts = self._local("columns").split(COUNTED_AT_A_TIME)
        live = sum((torch.count_nonzero(part < self.dims) for part in parts), torch.tensor(0, device=self.ranks.device))
        return int(self.ranks.sum(live))

    def gains(self, first: int, last: int, block: int = 1_000_000) -> np.ndarray:
        """The gains of the rows first … last − 1 of this rank's choice, float32; ones without gains.

        A collective call: ranks with shorter ranges look up nothing in the later blocks.
        """
        if not self.with_gains:
            return np.ones(last - first, dtype=np.float32)
        parts = []
        for block_first in range(0, self.ranks.largest(last - first), block):
            rows = torch.arange(min(first + block_first, last), min(first + block_first + block, last))
            with torch.no_grad():
                parts.append(self.module.module.gains_of(rows.to(self.ranks.device)).cpu().numpy())
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)

    def set_gains(self, gains: Callable[[int, int], np.ndarray]) -> None:
        """Fill this rank's shard of the gains from `gains(first, last)`, float32."""
        if not self.with_gains:
            return
        (weight,) = (value for key, value in self.module.state_dict().items() if key.startswith("gains."))
        for shard in weight.local_shards():
            first, count = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
            given = torch.from_numpy(gains(first, first + count))
            shard.tensor.zero_()
            shard.tensor[:, 0] = given.abs()
            shard.tensor[:, 1] = torch.where(given < 0, -1.0, 1.0)

    def owned(self) -> OwnedRows:
        """The rows that this rank owns, with their chunks from the next shards; a copy on the host."""
        first, last = self.row_ranges[self.ranks.rank]
        values = self._gather_chunks(self._local("values"))
        columns = self._gather_chunks(self._local("columns"))
        bounds = self.layout.offsets[first : last + 1].cpu().numpy() * self.layout.width
        return OwnedRows(
            first=first,
            last=last,
            offsets=bounds - bounds[0],
            values=values.flatten().cpu().numpy(),
            columns=columns.flatten().cpu().numpy().astype(np.int32),
            dims=self.dims,
        )

    def put_back(self, rows: OwnedRows) -> None:
        """Write what `owned` gave, changed, into the shards of all ranks that hold a part of it."""
        values = torch.from_numpy(rows.values).view(-1, self.layout.width).to(self.ranks.device)
        columns = torch.from_numpy(rows.columns.astype(np.float32)).view(-1, self.layout.width).to(self.ranks.device)
        before = self._local("columns").clone()
        self._scatter_chunks(values, self._local("values"))
        self._scatter_chunks(columns, self._local("columns"))
        self._reset_accumulators(before != self._local("columns"))

    def _reset_accumulators(self, changed: Tensor) -> None:
        """Give slots with another column the first value of the accumulator, where the optimizer has one a slot."""
        for name, state in self.module.fused_optimizer.state_dict()["state"].items():
            for tensor in state.values() if name.startswith("values.") else ():
                for shard in tensor.local_shards():
                    if shard.tensor.shape == changed.shape:
                        shard.tensor[changed] = self.warm_accumulator

    def _owner_ranges(self) -> list[tuple[int, int]]:
        """The half-open range of chunks whose rows each rank owns, in rank order."""
        offsets = self.layout.offsets
        return [(int(offsets[first]), int(offsets[last])) for first, last in self.row_ranges]

    def _gather_chunks(self, shard: Tensor) -> Tensor:
        """From chunks as they are held to chunks as they are owned, [n, w]."""
        return self._move(shard, self.ranges, self._owner_ranges())

    def _scatter_chunks(self, owned: Tensor, shard: Tensor) -> None:
        """The inverse of `_gather_chunks`, into `shard` in place."""
        shard.copy_(self._move(owned, self._owner_ranges(), self.ranges))

    def _move(self, chunks: Tensor, now: list[tuple[int, int]], then: list[tuple[int, int]]) -> Tensor:
        # only the chunks of straddling rows change rank; the part that stays is exchanged with oneself
        mine, _ = now[self.ranks.rank]
        parts = []
        for first, last in then:
            begin, end = max(first, mine), min(last, mine + len(chunks))
            parts.append(chunks[begin - mine : max(begin, end) - mine])
        return torch.cat(self.ranks.exchange(parts))


def _remote_bytes(ids: Tensor, mine: tuple[int, int], width: int, weights: int) -> int:
    """Bytes for the ids outside of `mine`: `weights` tables of float32 [width] read, one of them trained."""
    remote = int(((ids < mine[0]) | (ids >= mine[1])).sum())
    return remote * (8 * weights + 4 * width * (weights + 1))
