"""One training step, on one screen.

In: a batch, made ahead of time. Out: tables that moved a little, and now and then other live entries, or fewer. It is
the same code on 1 and N ranks: `ask`, `answer`, `backward` and all that changes the table's live entries are
collective, all else is local.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hse_dist.cluster import release_memory
from hse_dist.config import Config
from hse_dist.data.batch import Batch, make_batch
from hse_dist.data.prepared import HistoryBlock
from hse_dist.errors import NumericError
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.sparsity.client import Transport
from hse_dist.sparsity.collect import GrowthCollector
from hse_dist.sparsity.growth import merge
from hse_dist.sparsity.messages import Event, EventKind
from hse_dist.sparsity.rewind import early_values, remember, rewind
from hse_dist.sparsity.rewire import Candidates, rewire
from hse_dist.sparsity.schedule import (
    LiveCounts,
    collects_at,
    live_after,
    rate_share,
    repacks,
    rewind_step,
    rewires_at,
    start_counts,
)
from hse_dist.sparsity.slots import rescale_to_unit
from hse_dist.sparsity.start import StartFolder
from hse_dist.tables.plan import local_device
from hse_dist.tables.repack import packed_layout, put_in, take_out
from hse_dist.tables.sharded import DenseTable, PackedTable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """What a step says of itself: loss (this rank's), users, bytes sent to other ranks by kind, its rewire, if any."""

    loss: float
    users: int
    wire_bytes: dict[str, int]
    rewired: dict[str, Any] | None


class Trainer:
    """A table, a model, and the way from one step to the next.

    Args:
        transport: to the SparsityServer.
        steps: length of the run on these ranks, for schedules.
        ahead: how much further the run is than its count of steps says: a run that began on other ranks counted other
            steps.
    """

    def __init__(
        self,
        config: Config,
        table: PackedTable | DenseTable,
        transport: Transport,
        ranks: Ranks,
        steps: int,
        ahead: int = 0,
    ) -> None:
        self.config, self.table, self.transport, self.ranks = config, table, transport, ranks
        self.steps, self.ahead = steps, ahead
        self.device = local_device(ranks.device)  # with its number: a thread's present device is always the first
        self.model = Autoencoder(config.model)
        self.collector = GrowthCollector(config.sparsity.grow)
        self.folder, self.rows = RunFolder(config), table.rows
        self.version = 0
        self.remembered: int | None = None
        self.counts: LiveCounts | None = None
        """Where the number of live entries begins and ends; None where nobody recorded a start."""
        self.live = table.rows * table.dims
        """Live entries of the whole table, as of the last rewire; a dense table's are all."""
        self._asked: tuple[Batch, Any] | None = None

    def step(self, batch: Batch, step: int, following: Batch | None = None) -> StepResult:
        """Train on one batch; `step` counts from 1 and keys every random number.

        Args:
            following: the next step's batch, if there is one on all ranks: its ids travel while this step computes.
        """
        before, due = dict(self.ranks.meter.sent), step + self.ahead
        loss, users = self._train(batch, step, following)
        entry = None
        if isinstance(self.table, PackedTable):
            with self.ranks.meter.all_as("rewire"):
                entry = self._change(due)
        return StepResult(loss, users, self.ranks.meter.since(before), entry)

    def _train(self, batch: Batch, step: int, following: Batch | None) -> tuple[float, int]:
        """Loss and users of this rank; what backward needs is gone after it."""
        sparsity, due = self.config.sparsity, step + self.ahead
        collect = isinstance(self.table, PackedTable) and collects_at(sparsity, due, self.steps)
        self._set_rates(due)
        rows = self.table.answer(self._ask(batch))
        if self._falls(due):
            following = None  # a repack would leave its ids without a meaning
        ahead = self._ask(following) if following is not None else None
        watched = self.collector.users(rows) if collect else 0
        loss, activations = self.model.loss(rows, batch, self._generator(step), collect=watched)
        self._check(loss, step)
        if following is not None and ahead is not None:
            ahead.advance()
            self._asked = (following, ahead)
        loss.backward()  # the fused optimizer updates the owners' shards in here
        if collect:
            self.collector.collect(activations, batch.candidates)
        return loss.item(), int((batch.offsets.diff() > 0).sum())

    def _falls(self, step: int) -> bool:
        """Whether the number of live entries is to fall after `step`. It may be late: a run that goes on with other
        ranks counts other steps, and may find itself past the one at which it should have."""
        counts = self.counts
        return counts is not None and self.live > live_after(self.config.sparsity.schedule, counts, step, self.steps)

    @property
    def within_budget(self) -> bool:
        """Whether no more entries are live than there are to be in the end."""
        return self.counts is None or self.live <= self.counts.goal

    def _change(self, step: int) -> dict[str, Any] | None:
        """What happens to the table after `step`; the journal's entry of its rewire, if there is one."""
        sparsity, falls = self.config.sparsity, self._falls(step)
        if sparsity.schedule.kind == "lottery" and self.remembered is None:
            self.remember(step)
        if not falls and not rewires_at(sparsity, step, self.steps):
            return None
        entry = self.rewire(step)
        self.live = entry["live"]
        if falls and sparsity.schedule.kind == "lottery":
            self.rewind(step)
        if falls:
            self.repack(step)
        return entry

    def _ask(self, batch: Batch) -> Any:
        """The rows of a batch, on their way; perhaps since the step before."""
        asked, self._asked = self._asked, None
        return asked[1] if asked is not None and asked[0] is batch else self.table.ask(batch.candidates)

    def rewire(self, step: int) -> dict[str, Any]:
        """Let all ranks choose new live entries together; the journal's entry."""
        table = self.table
        assert isinstance(table, PackedTable)
        candidates, visited = None, 0
        if self.config.sparsity.grow.kind == "gradient":
            triples, seen = self.collector.send_to_owners(self.ranks, table.row_ranges)
            candidates = Candidates(*merge(triples, seen))
            visited = len(seen)
        release_memory()  # the collecting steps before it and the rewire itself would add up
        owned = table.owned(borrow=True)
        try:
            gains = table.gains(owned.first, owned.last)
            unit = self.config.model.row_norm == "unit"
            if unit:
                rescale_to_unit(owned)  # the model sees rows at length 1, and so must the scores of their entries
            closed = rewire(
                owned,
                gains,
                candidates,
                self.transport,
                self.config.sparsity,
                version=self.version,
                step=step,
                seed=self.config.run.seed,
                visits=visited,
            )
            if unit:
                rescale_to_unit(owned)
            table.put_back(owned)
        finally:
            table.end_loan()  # where something failed
        self.version = closed.version
        return closed.entry

    def remember(self, step: int) -> None:
        """Write down the values that a lottery goes back to, once `step` is late enough."""
        table, wanted = self.table, rewind_step(self.config.sparsity.schedule, self.steps)
        assert isinstance(table, PackedTable)
        if 0 < wanted <= step:
            remember(table, self.folder.early, step)
            self._record(step, "remember", {"live": self.live})
            self.remembered = step

    def rewind(self, step: int) -> None:
        """Give what is live its early value, and every gain; the optimizer begins anew, nothing is owed."""
        table, since = self.table, self.remembered
        assert isinstance(table, PackedTable)
        early = StartFolder(self.folder.start) if since is None else early_values(self.folder.early, since)
        owned = table.owned(borrow=True)
        try:
            rewind(owned, early)
            if self.config.model.row_norm == "unit":
                rescale_to_unit(owned)
            table.put_back(owned)
        finally:
            table.end_loan()
        table.set_gains(early.gains)
        table.fill_accumulators(self.config.train.warm_accumulator)
        table.forget_residuals()
        self._record(step, "rewind", {"live": self.live, "to": since or 0})

    def repack(self, step: int) -> None:
        """Move the table into fewer chunks, if the schedule finds that this is worth it."""
        table = self.table
        assert isinstance(table, PackedTable)
        layout, before = packed_layout(table, self.config.tables.item.slack), table.layout.chunks
        # of fewer chunks than this the planner could leave a rank without any
        enough = layout.chunks >= self.ranks.size**2
        if not (enough and repacks(self.config.sparsity.schedule, step, self.steps, before, layout.chunks)):
            return
        facts = {"live": self.live, "chunks_before": before, "chunks_after": layout.chunks}
        facts |= {f"bytes_{when}": table.bytes_of_chunks(facts[f"chunks_{when}"]) for when in ("before", "after")}
        contents = take_out(table)
        del table, self.table  # its memory, before there is another
        self.table = put_in(contents, layout)
        del contents
        release_memory()
        self._record(step, "repack", facts)
        if self.ranks.rank == 0:
            saved = (facts["bytes_before"] - facts["bytes_after"]) / 2**20
            log.info("Repacked %d chunks into %d: %.1f MiB less", before, layout.chunks, saved)

    def _record(self, step: int, kind: EventKind, facts: dict[str, int]) -> None:
        """A line in the journal, and the next version."""
        self.version = self.transport.ask(Event(self.version + 1, step, kind, facts)).version

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on from the server's state of a start or a checkpoint."""
        self.version, journal = state["version"], state["journal"]
        self.counts = start_counts(journal)
        if self.counts is not None:
            self.live = next(entry["live"] for entry in reversed(journal) if "live" in entry)
        self.remembered = next((entry["step"] for entry in journal if entry.get("kind") == "remember"), None)

    def batch(self, block: HistoryBlock, step: int) -> Batch:
        """This rank's input of a step, on its device. It follows from block, seed, step and rank alone, so that a
        thread may make it before its step."""
        batch = make_batch(
            block,
            rows=self.rows,
            negatives=self.config.train.negatives,
            seed=self.config.run.seed,
            step=step,
            rank=self.ranks.rank,
        )
        return batch.to(self.device)

    def own_state(self) -> dict[str, np.ndarray]:
        """What no other rank has: growth candidates, and what this rank owes of its gradients."""
        owed = self.table.residuals_state() if isinstance(self.table, PackedTable) else {}
        return {**self.collector.state_dict(), **owed}

    def load_own_state(self, state: dict[str, np.ndarray]) -> None:
        """Take up `own_state()` of a rank, too."""
        self.collector.load_state_dict(state)
        if isinstance(self.table, PackedTable):
            self.table.load_residuals(state)

    def _generator(self, step: int) -> torch.Generator:
        """Of the input dropout: keyed, not carried, so that a resumed run draws what an uninterrupted one would."""
        key = (self.config.run.seed * 1_000_003 + step) * 65_537 + self.ranks.rank
        return torch.Generator().manual_seed(key % 2**63)

    def _set_rates(self, step: int) -> None:
        settings, share = self.config.train, 1.0
        if settings.decay == "cosine":
            done = rate_share(self.config.sparsity.schedule, step, self.steps)
            share = 0.5 * (1.0 + math.cos(math.pi * done))
        self.table.set_rates(settings.learning_rate * share, settings.gain_learning_rate * share)

    def _check(self, loss: torch.Tensor, step: int) -> None:
        if not torch.isfinite(loss):
            raise NumericError(
                f"The loss of rank {self.ranks.rank} in step {step} is {loss.item()}.",
                cause="Training diverged; a smaller rate is the usual cure.",
                setting="train.learning_rate",
                value=self.config.train.learning_rate,
            )
