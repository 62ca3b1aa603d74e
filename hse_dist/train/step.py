"""One training step, on one screen.

In: a batch, made ahead of time. Out: tables that moved a little, and now and then other live entries, or fewer
(`rewiring.py`). It is the same code on 1 and N ranks: `ask`, `answer`, `backward` and all that changes the table's live
entries are collective, all else is local.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hse_dist.config import Config
from hse_dist.data.batch import Batch, make_batch
from hse_dist.data.feature_rows import FeatureRows
from hse_dist.data.prepared import HistoryBlock
from hse_dist.errors import NumericError
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.ranks import Ranks
from hse_dist.sparsity.client import Transport
from hse_dist.sparsity.schedule import collects_at, rate_share, watches_at
from hse_dist.tables.plan import local_device
from hse_dist.tables.sharded import DenseTable, PackedTable
from hse_dist.train.dense_update import DenseUpdate
from hse_dist.train.guard import Guard, NotFiniteError
from hse_dist.train.rewiring import Rewirer
from hse_dist.train.teacher import TeacherTable

MOST_SKIPPED = 20
"""Steps in a row that are left out for NaN or infinity before the run ends: it would learn nothing more."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """What a step says of itself: loss (this rank's; None: it was left out), users, bytes sent to other ranks by kind,
    its rewire, if any."""

    loss: float | None
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
        features: of users and items, that have rows in the table.
        chances: of `make_batch`; None where the loss needs none.
        teacher: whose scores take the place of histories in the loss.

    Attributes:
        skipped: the steps that were left out, since the start of the run.
        guard: knows whether to stop.
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
        features: FeatureRows | None = None,
        chances: np.ndarray | None = None,
        teacher: TeacherTable | None = None,
    ) -> None:
        super().__init__(config, table, transport, ranks, steps, counts, features)
        self.ahead = ahead
        self.device = local_device(ranks.device)  # with its number: a thread's present device is always the first
        self.model = Autoencoder(config.model, self.parameters.to(self.device))
        self.dense = DenseUpdate(self.parameters, config.train.weight_learning_rate, ranks)
        self.chances, self.teacher = chances, teacher
        self.guard, self.skipped = Guard(ranks, self.parameters.trained), list[int]()
        self._asked: tuple[Batch, Any] | None = None

    def step(self, batch: Batch, step: int, following: Batch | None = None) -> StepResult:
        """Train on one batch; `step` counts from 1 and keys every random number.

        Args:
            following: the next step's batch, if there is one on all ranks: its ids travel while this step computes.
        """
        before, due = dict(self.ranks.meter.sent), step + self.ahead
        try:
            loss, users = self._train(batch, step, following)
        except NotFiniteError as error:
            self._leave_out(step, error)
            loss, users = None, 0
        entry = None
        if isinstance(self.table, PackedTable):
            with self.ranks.meter.all_as("rewire"):
                entry = self._change(due)
        return StepResult(loss, users, self.ranks.meter.since(before), entry)

    def _train(self, batch: Batch, step: int, following: Batch | None) -> tuple[float | None, int]:
        """Loss and users of this rank; what backward needs is gone after it."""
        sparsity, due, packed = self.config.sparsity, step + self.ahead, isinstance(self.table, PackedTable)
        collect = packed and collects_at(sparsity, due, self.steps)
        watch = packed and watches_at(sparsity, due, self.steps)
        share = self._set_rates(due)
        rows = self.guard.watch(self.table.answer(self._ask(batch)), batch.candidates)
        if self._falls(due):
            following = None  # a repack would leave its ids without a meaning
        ahead = self._ask(following) if following is not None else None
        grows = collect and sparsity.grow.by_gradient
        watched = self.collector.users(rows) if grows else 0
        if watch:
            self.live_seen.watch(rows)
        taught = self.teacher.answer(batch) if self.teacher is not None else None
        loss, activations = self.model.loss(rows, batch, self._generator(step), collect=watched, teacher=taught)
        if following is not None and ahead is not None:
            ahead.advance()
            self._asked = (following, ahead)
        self.guard.backward(loss)  # the fused optimizer updates the owners' shards in here
        self.dense.step(share)
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
            rows=self.items,
            negatives=self.config.train.negatives,
            seed=self.config.run.seed,
            step=step,
            rank=self.ranks.rank,
            features=self.features,
            log_chances=self.chances,
        )
        return batch.to(self.device)

    def _generator(self, step: int) -> torch.Generator:
        """Of the input dropout: keyed, not carried, so that a resumed run draws what an uninterrupted one would."""
        key = (self.config.run.seed * 1_000_003 + step) * 65_537 + self.ranks.rank
        return torch.Generator().manual_seed(key % 2**63)

    def _set_rates(self, step: int) -> float:
        """Set those of the tables; the share of its rate that everything learns at."""
        settings, share = self.config.train, 1.0
        if settings.decay == "cosine":
            done = rate_share(self.config.sparsity.schedule, step, self.steps)
            share = 0.5 * (1.0 + math.cos(math.pi * done))
        self.table.set_rates(settings.learning_rate * share, settings.gain_learning_rate * share)
        return share

    def _leave_out(self, step: int, error: NotFiniteError) -> None:
        """Count a step that changed nothing.

        Raises:
            NumericError: there shall be none, or there were too many; the same on all ranks.
        """
        self.skipped.append(step)
        self.dense.forget()
        everywhere = self.skipped[-MOST_SKIPPED:] == list(range(step - MOST_SKIPPED + 1, step + 1))
        if self.config.train.on_nan == "skip" and not everywhere:
            if self.ranks.rank == 0:
                log.warning("Step %d changes nothing: %s", step, error)
            return
        often = f" It is the {MOST_SKIPPED}th step in a row that had to be left out." if everywhere else ""
        raise NumericError(
            f"In step {step} {error}.{often}",
            cause="Training diverged; a smaller rate is the usual cure.",
            setting="train.learning_rate",
            value=self.config.train.learning_rate,
        )

    def own_state(self) -> dict[str, np.ndarray]:
        return {**super().own_state(), "skipped_steps": np.array(self.skipped, np.int64)}

    def load_own_state(self, state: dict[str, np.ndarray]) -> None:
        super().load_own_state(state)
        # the same on all ranks; a checkpoint that knows of no such steps has none
        self.skipped = sorted({*self.skipped, *state.get("skipped_steps", np.empty(0, np.int64)).tolist()})
