"""One training step, on one screen.

In: a batch, made ahead of time. Out: tables that moved a little, and now and then other live entries, or fewer
(`rewiring.py`). It is the same code on 1 and N ranks: `ask`, `answer`, `backward` and all that changes the table's live
entries are collective, all else is local.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hse_dist.config import Config
from hse_dist.data.batch import Batch, make_batch
from hse_dist.data.prepared import HistoryBlock
from hse_dist.errors import NumericError
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.ranks import Ranks
from hse_dist.sparsity.client import Transport
from hse_dist.sparsity.schedule import collects_at, rate_share, watches_at
from hse_dist.tables.plan import local_device
from hse_dist.tables.sharded import DenseTable, PackedTable
from hse_dist.train.rewiring import Rewirer


@dataclass(frozen=True)
class StepResult:
    """What a step says of itself: loss (this rank's), users, bytes sent to other ranks by kind, its rewire, if any."""

    loss: float
    users: int
    wire_bytes: dict[str, int]
    rewired: dict[str, Any] | None


class Trainer(Rewirer):
    """A table, a model, and the way from one step to the next.

    Args:
        transport: to the SparsityServer.
        steps: length of the run on these ranks, for schedules.
        ahead: how much further the run is than its count of steps says: a run that began on other ranks counted other
            steps.
        counts: training interactions of each row, int64 [rows]; None: all the same.
    """

    def __init__(
        self,
        config: Config,
        table: PackedTable | DenseTable,
        transport: Transport,
        ranks: Ranks,
        steps: int,
        ahead: int = 0,
        counts: np.ndarray | None = None,
    ) -> None:
        super().__init__(config, table, transport, ranks, steps, counts)
        self.ahead = ahead
        self.device = local_device(ranks.device)  # with its number: a thread's present device is always the first
        self.model = Autoencoder(config.model)
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
        sparsity, due, packed = self.config.sparsity, step + self.ahead, isinstance(self.table, PackedTable)
        collect = packed and collects_at(sparsity, due, self.steps)
        watch = packed and watches_at(sparsity, due, self.steps)
        self._set_rates(due)
        rows = self.table.answer(self._ask(batch))
        if self._falls(due):
            following = None  # a repack would leave its ids without a meaning
        ahead = self._ask(following) if following is not None else None
        grows = collect and sparsity.grow.by_gradient
        watched = self.collector.users(rows) if grows else 0
        if watch:
            self.live_seen.watch(rows)
        loss, activations = self.model.loss(rows, batch, self._generator(step), collect=watched)
        self._check(loss, step)
        if following is not None and ahead is not None:
            ahead.advance()
            self._asked = (following, ahead)
        loss.backward()  # the fused optimizer updates the owners' shards in here
        if grows:
            self.collector.collect(activations, batch.candidates)
        elif collect:
            self.collector.collect_shared(rows, batch)
        if watch:
            self.live_seen.collect(rows, batch.candidates)
        return loss.item(), int((batch.offsets.diff() > 0).sum())

    def _ask(self, batch: Batch) -> Any:
        """The rows of a batch, on their way; perhaps since the step before."""
        asked, self._asked = self._asked, None
        return asked[1] if asked is not None and asked[0] is batch else self.table.ask(batch.candidates)

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
