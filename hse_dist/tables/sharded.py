"""A logical table spread over the ranks: lookup, fused update, and the local shard.

In: an unsharded collection, a plan, the ranks. Out: `ShardedTable`, whose `lookup` is a collective call that gives the
rows of this rank's candidates, and whose update happens inside the backward pass.

Rows are owned by the rank that holds their first chunk. Under ROW_WISE a row may run on into the next shard: at most
ranks − 1 rows do. `owned()` gathers such a row's other chunks to its owner and `put_back` returns them.

A GPU's shard may lie in the host's memory with a cache on the GPU. Whoever reads or writes a shard itself gets it from
`weights()`, with the cache written back and emptied, and must be done with it before the next lookup.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv

from hse_dist.config import TrainSettings, WireSettings
from hse_dist.errors import RunFolderError
from hse_dist.ranks import Ranks
from hse_dist.tables.block import DenseRows, SparseRows
from hse_dist.tables.codecs import Codec, Columns, StrongestGradients, registry, value_codecs
from hse_dist.tables.collection import DenseCollection, PackedCollection, Wire
from hse_dist.tables.feedback import Residuals
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.numbers import floats, padded, stored_numbers, whole_numbers
from hse_dist.tables.plan import local_device, make_plan, make_sharders, shard_ranges
from hse_dist.tables.shard_memory import ShardMemory, weights

IN_PLACE = ShardMemory()
COUNTED_AT_A_TIME = 2**18
"""Chunks whose live entries are counted at once."""


@dataclass
class OwnedRows:
    """The rows first … last − 1 of one owner, place by place, in row order; numpy, on the host.

    A place is a slot, or b adjacent slots for b adjacent columns, which are live or free together.

    Attributes:
        offsets: int64 [rows + 1], first place of each row.
        values: float32 [places · b]; 0 where the place is free.
        columns: int32 [places]; the column (of a block: first column / b), `dims` where the place is free.
        dims: D / b.
        block: b.
    """

    first: int
    last: int
    offsets: np.ndarray
    values: np.ndarray
    columns: np.ndarray
    dims: int
    block: int = 1

    @property
    def live(self) -> np.ndarray:
        """Which places are live, bool [places]."""
        return self.columns < self.dims

    @property
    def by_place(self) -> np.ndarray:
        """The values as [places, b]; a view."""
        return self.values.reshape(-1, self.block)

    def slot_rows(self) -> np.ndarray:
        """The table row of each place, int64 [places]."""
        return np.repeat(np.arange(self.first, self.last), np.diff(self.offsets))


class ShardedTable:
    """A packed or dense table under `DistributedModelParallel`; every method but `set_rates` is a collective call."""

    def __init__(
        self,
        collection: nn.Module,
        ranks: Ranks,
        sharders: list[Any],
        train: TrainSettings,
        sharding: str,
        memory: ShardMemory,
    ) -> None:
        plan = make_plan(collection, sharders, ranks, sharding, memory)
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
        self.warm_accumulator, self.state_a_slot = train.warm_accumulator, train.optimizer == "adagrad"
        self.fill_accumulators(train.warm_accumulator)

    def ask(self, rows: Tensor) -> Any:
        """Send for the rows int64 [C] of this rank's candidates, none of them twice; `answer` may come much later."""
        return self.module.module.ask(rows)

    def answer(self, asked: Any) -> SparseRows | DenseRows:
        """The rows that were asked for, as they are now; gradients flow back into the fused update."""
        return self.module(asked)

    def lookup(self, rows: Tensor) -> SparseRows | DenseRows:
        """`ask` and `answer` at once."""
        return self.answer(self.ask(rows))

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
        return {"model": weights(self.module), **({"optimizer": states} if states else {})}

    def _local(self, name: str) -> Tensor:
        """This rank's shard of the collection `name`, [n, width]; empty where it holds none."""
        (weight,) = (value for key, value in weights(self.module).items() if key.startswith(f"{name}."))
        shards = weight.local_shards()
        return shards[0].tensor if shards else torch.empty(0, weight.metadata().size[1], device=self.ranks.device)

    def local_values(self) -> Tensor:
        """This rank's shard of the values: float32 [chunks, w], or [rows, D] of a dense table."""
        return self._local("values")


class DenseTable(ShardedTable):
    """The dense baseline."""

    def __init__(
        self,
        rows: int,
        dims: int,
        ranks: Ranks,
        train: TrainSettings,
        sharding: str,
        memory: ShardMemory = IN_PLACE,
    ) -> None:
        super().__init__(DenseCollection(rows, dims), ranks, make_sharders(train), train, sharding, memory)
        self.module.module.ranks = ranks
        self.rows, self.dims = rows, dims

    def check_loaded(self) -> None:
        """As that of a packed table; nothing indexes memory here."""

    def live_entries(self) -> int:
        """All entries of the table."""
        return self.rows * self.dims


@dataclass(frozen=True)
class Recipe:
    """How a packed table is made, whatever its layout."""

    train: TrainSettings
    sharding: str
    with_gains: bool
    wire: WireSettings
    block: int
    memory: ShardMemory


class PackedTable(ShardedTable):
    """Rows of live entries in chunks; `block` adjacent columns, of which D is a multiple, are live together."""

    def __init__(
        self,
        layout: RowLayout,
        dims: int,
        ranks: Ranks,
        train: TrainSettings,
        sharding: str,
        *,
        with_gains: bool,
        wire: WireSettings | None = None,
        block: int = 1,
        memory: ShardMemory = IN_PLACE,
    ) -> None:
        layout = RowLayout(layout.offsets.to(ranks.device), layout.width)
        wire = wire or WireSettings()
        self.recipe = Recipe(train, sharding, with_gains, wire, block, memory)
        self.block, self.free, self.numbers = block, dims // block, layout.width // block
        values, gradients = value_codecs(wire, layout.width)
        columns = Columns(self.free, stored_numbers(layout.width, block), self.numbers)
        sharders = make_sharders(train, registry(values, gradients), registry(columns, Codec()))
        collection = PackedCollection(layout, dims, with_gains=with_gains, block=block)
        super().__init__(collection, ranks, sharders, train, sharding, memory)
        self.residuals, self._feedback_mb = None, wire.feedback_mb
        if wire.feedback and not gradients.exact and ranks.size > 1:  # one rank alone sends nothing
            device = local_device(ranks.device)
            self.residuals = Residuals(gradients, layout.chunks, wire.feedback_mb, ranks.size, device)
        self.module.module.wire = Wire(ranks, columns, values, gradients, self.residuals)
        self.layout, self.dims, self.rows, self.with_gains = layout, dims, layout.rows, with_gains
        self.row_ranges = [layout.rows_starting_in(*chunks) for chunks in self.ranges]
        self.lent = False

    def residuals_state(self) -> dict[str, np.ndarray]:
        """What this rank still owes of its gradients; empty where nothing is left out."""
        return self.residuals.state_dict() if self.residuals is not None else {}

    def load_residuals(self, state: dict[str, np.ndarray]) -> None:
        """Owe, too, what `residuals_state()` of a rank of the same or of another number of ranks gave."""
        if not len(state.get("residual_ids", ())):
            return
        if self.residuals is None:
            # this rank leaves nothing out: all that it took over goes into its next gradients
            whole = StrongestGradients(self.layout.width, self.layout.width, "float32")
            self.residuals = Residuals(
                whole, self.layout.chunks, self._feedback_mb, self.ranks.size, self.local_values().device
            )
            self.module.module.wire = replace(self.module.module.wire, residuals=self.residuals)
        self.residuals.load_state_dict(state)

    def forget_residuals(self) -> None:
        """Owe nothing."""
        if self.residuals is not None:
            self.residuals.values.zero_()

    def bytes_of_chunks(self, chunks: int) -> int:
        """Memory of so many chunks on all ranks: values, columns and the values' accumulators."""
        width = self.layout.width
        return 4 * chunks * (width + stored_numbers(width, self.block) + (width if self.state_a_slot else 1))

    def local_columns(self) -> Tensor:
        """This rank's shard of the column numbers (`numbers.py`): float32 [chunks, s], `free` in free places."""
        return self._local("columns")

    def check_loaded(self) -> None:
        """Check what a checkpoint has filled in, before kernels index memory by it; a collective call.

        Raises:
            RunFolderError: column numbers are none, or numbers are not finite, on some rank.
        """
        wrong = torch.tensor(0, device=self.ranks.device)
        for part in self._local("columns").split(COUNTED_AT_A_TIME):
            wrong += torch.count_nonzero(~((part >= 0) & (part <= self.free) & (part == part.floor())))
        for name in ("values", "gains") if self.with_gains else ("values",):
            for part in self._local(name).split(COUNTED_AT_A_TIME):
                wrong += torch.count_nonzero(~part.isfinite())
        if found := int(self.ranks.sum(wrong)):
            raise RunFolderError(
                f"The checkpoint holds {found} numbers that a table cannot have: columns beyond {self.free}, or values "
                "that are not finite.",
                cause="It was changed, or it is one of a run with other columns.",
            )

    def live_entries(self) -> int:
        """Live entries of the whole table."""
        # in blocks: a sum of marks makes whole numbers of them first, eight bytes a slot
        parts = self._local("columns").split(COUNTED_AT_A_TIME)
        live = sum((torch.count_nonzero(part < self.free) for part in parts), torch.tensor(0, device=self.ranks.device))
        return int(self.ranks.sum(live)) * self.block

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
        (weight,) = (value for key, value in weights(self.module).items() if key.startswith("gains."))
        for shard in weight.local_shards():
            first, count = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
            given = torch.from_numpy(gains(first, first + count))
            shard.tensor.zero_()
            shard.tensor[:, 0] = given.abs()
            shard.tensor[:, 1] = torch.where(given < 0, -1.0, 1.0)

    def owned(self, *, borrow: bool = False) -> OwnedRows:
        """The rows that this rank owns, with their chunks from the next shards; on the host.

        Args:
            borrow: the shard's own memory where that is possible (no row straddles, a CPU, no accumulator a slot), and
                no lookup before `put_back`: its columns are whole numbers meanwhile. Else, and elsewhere, a copy.
        """
        first, last = self.row_ranges[self.ranks.rank]
        self.lent = borrow and self._can_lend()
        if self.lent:
            values, columns = self.local_values().view(-1), whole_numbers(self.local_columns().view(-1))
        else:
            values = self.gather_chunks(self._local("values")).flatten().to("cpu", copy=True)
            numbers = self.gather_chunks(self._local("columns"))[:, : self.numbers]
            columns = numbers.to(torch.int32).flatten()
        offsets = self.layout.offsets[first : last + 1].cpu().numpy() * self.numbers
        offsets -= int(offsets[0])
        return OwnedRows(first, last, offsets, values.numpy(), columns.numpy(), self.free, self.block)

    def _can_lend(self) -> bool:
        """The same answer on every rank."""
        whole = self._owner_ranges() == self.ranges and self.numbers == stored_numbers(self.layout.width, self.block)
        return whole and self.ranks.device.type == "cpu" and not self.state_a_slot

    def put_back(self, rows: OwnedRows) -> None:
        """Write what `owned` gave, changed, into the shards of all ranks that hold a part of it."""
        if self.end_loan():
            return
        values = torch.from_numpy(rows.values).view(-1, self.layout.width)
        columns = torch.from_numpy(rows.columns).view(-1, self.numbers).to(torch.int32)
        columns = padded(columns, stored_numbers(self.layout.width, self.block), self.free)
        accumulators = [shard for shard in self.accumulators("values") if shard.shape == self._local("values").shape]
        before = self._local("columns")[:, : self.numbers].to("cpu", copy=True) if accumulators else None
        self._scatter_chunks(values, self._local("values"))
        self._scatter_chunks(columns, self._local("columns"))
        if before is not None:
            changed = (before != self._local("columns")[:, : self.numbers].cpu()).repeat_interleave(self.block, 1)
            for accumulator in accumulators:
                accumulator[changed.to(accumulator.device)] = self.warm_accumulator

    def end_loan(self) -> bool:
        """Take the shard back where `owned` lent it: what was changed stays; whether it was lent."""
        if lent := self.lent:
            self.lent = False
            floats(self.local_columns().view(-1))
        return lent

    def accumulators(self, name: str) -> list[Tensor]:
        """The optimizer's accumulators of this rank's shard of the collection `name`: [rows], or [rows, width] where
        each slot has its own, which begins anew where a rewire changes the slot's column."""
        states = self.module.fused_optimizer.state_dict()["state"]
        tensors = [tensor for key, state in states.items() if key.startswith(f"{name}.") for tensor in state.values()]
        found = [shard.tensor for tensor in tensors for shard in tensor.local_shards()]
        empty = self._local(name)[:0]  # a rank without rows has no state, but takes part in its moves
        return found or [empty.clone() if self.state_a_slot else empty.sum(1)]

    def gain_shards(self) -> tuple[list[Tensor], int]:
        """This rank's shard of the gains and its accumulators, each [rows, …]; its first row. Without gains none."""
        if not self.with_gains:
            return [], 0
        first, _ = shard_ranges(self.plan, "gains", self.ranks.size)[self.ranks.rank]
        return [self._local("gains"), *self.accumulators("gains")], first

    def _owner_ranges(self) -> list[tuple[int, int]]:
        """The half-open range of chunks whose rows each rank owns, in rank order."""
        offsets = self.layout.offsets
        return [(int(offsets[first]), int(offsets[last])) for first, last in self.row_ranges]

    def gather_chunks(self, shard: Tensor) -> Tensor:
        """From chunks as they are held to chunks as they are owned, [n, w]; on the host, perhaps a view."""
        return self._move(shard, self.ranges, self._owner_ranges())

    def _scatter_chunks(self, owned: Tensor, shard: Tensor) -> None:
        """The inverse of `gather_chunks`, into `shard` in place."""
        shard.copy_(self._move(owned, self._owner_ranges(), self.ranges))

    def _move(self, chunks: Tensor, now: list[tuple[int, int]], then: list[tuple[int, int]]) -> Tensor:
        # Only the chunks of straddling rows change rank and pass through the device: a shard in the host's memory may
        # be larger than that.
        me, (mine, _) = self.ranks.rank, now[self.ranks.rank]
        parts = []
        for first, last in then:
            begin, end = max(first, mine), min(last, mine + len(chunks))
            parts.append(chunks[begin - mine : max(begin, end) - mine])
        stays, parts[me] = parts[me], chunks[:0]
        moved = self.ranks.exchange([part.to(self.ranks.device) for part in parts])
        received = [part.cpu() for part in (*moved[:me], stays, *moved[me + 1 :]) if len(part)]
        return received[0] if len(received) == 1 else torch.cat(received or [chunks[:0].cpu()])
