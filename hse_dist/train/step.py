"""One training step, on one screen.

In: a batch, made ahead of time. Out: tables that moved a little, and now and then other live entries. It is the same
code on 1 and N ranks: `ask`, `answer`, `backward` and `rewire` are collective, all else is local.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hse_dist.cluster import release_memory
from hse_dist.config import Config
from hse_dist.data.batch import Batch, make_batch
from hse_dist.data.popularity import thirds
from hse_dist.data.prepared import HistoryBlock
from hse_dist.errors import NumericError
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.ranks import Ranks
from hse_dist.sparsity.census import Census
from hse_dist.sparsity.client import Transport
from hse_dist.sparsity.collect import GrowthCollector
from hse_dist.sparsity.criteria import Evidence, LiveSightings, column_lengths, popularity_of
from hse_dist.sparsity.growth import merge
from hse_dist.sparsity.momentum import Momenta, carry
from hse_dist.sparsity.rewire import Candidates, rewire
from hse_dist.sparsity.schedule import collects_at, rewires_at
from hse_dist.sparsity.sightings import Sightings
from hse_dist.sparsity.slots import find_live, rescale_to_unit
from hse_dist.tables.block import DenseRows, SparseRows
from hse_dist.tables.plan import local_device
from hse_dist.tables.sharded import DenseTable, OwnedRows, PackedTable


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
        self.config, self.table, self.transport, self.ranks = config, table, transport, ranks
        self.steps, self.ahead = steps, ahead
        self.device = local_device(ranks.device)  # with its number: a thread's present device is always the first
        self.model = Autoencoder(config.model)
        self.collector = GrowthCollector(config.sparsity.grow)
        self.momenta = Sightings("momentum_")
        self.live_seen = LiveSightings(config.sparsity.drop)
        self.popularity = popularity_of(counts, config.sparsity.drop.popularity_power)
        self.version = 0
        self.census: Census | None = None
        if isinstance(table, PackedTable):
            third = None if counts is None else thirds(counts)
            self.census = Census(ranks, third, table.rows, table.dims, config.sparsity.journal.ages)
        self.costs: dict[int, tuple[float, float]] = {}
        self._asked: tuple[Batch, Any] | None = None

    def step(self, batch: Batch, step: int, following: Batch | None = None) -> StepResult:
        """Train on one batch; `step` counts from 1 and keys every random number.

        Args:
            following: the next step's batch, if there is one on all ranks: its ids travel while this step computes.
        """
        sparsity, before = self.config.sparsity, dict(self.ranks.meter.sent)
        packed, due = isinstance(self.table, PackedTable), step + self.ahead
        collect = packed and collects_at(sparsity, due, self.steps)
        self._set_rates(due)
        rows = self.table.answer(self._ask(batch))
        ahead = self._ask(following) if following is not None else None
        grows = collect and sparsity.grow.by_gradient
        watched = self.collector.users(rows) if grows else 0
        if collect:
            self.live_seen.watch(rows)
        loss, activations = self.model.loss(rows, batch, self._generator(step), collect=watched)
        self._check(loss, step)
        if following is not None and ahead is not None:
            ahead.advance()
            self._asked = (following, ahead)
        loss.backward()  # the fused optimizer updates the owners' shards in here
        if grows:
            self.collector.collect(activations, batch.candidates)
        if collect:
            self._collect(rows, batch)
        entry = None
        if packed and rewires_at(sparsity, due, self.steps):
            with self.ranks.meter.all_as("rewire"):
                entry = self._timed_rewire(due)
        users = int((batch.offsets.diff() > 0).sum())
        return StepResult(loss.item(), users, self.ranks.meter.since(before), entry)

    def _ask(self, batch: Batch) -> Any:
        """The rows of a batch, on their way; perhaps since the step before."""
        asked, self._asked = self._asked, None
        return asked[1] if asked is not None and asked[0] is batch else self.table.ask(batch.candidates)

    def _timed_rewire(self, step: int) -> dict[str, Any]:
        """A rewire, of which `costs` knows seconds (this rank's) and bytes (of all ranks): not decided, so they are
        no part of the journal that ranks must agree on."""
        began, before = time.perf_counter(), self.ranks.meter.sent["rewire"]
        entry = self.rewire(step)
        sent = self.ranks.sum(torch.tensor(self.ranks.meter.sent["rewire"] - before, device=self.ranks.device))
        self.costs[self.version] = (time.perf_counter() - began, float(sent))
        return entry

    def journal(self, decided: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The server's journal with what each rewire cost."""
        return [
            {**entry, **dict(zip(("seconds", "bytes"), self.costs.get(entry["version"], ()), strict=False))}
            for entry in decided
        ]

    def rewire(self, step: int) -> dict[str, Any]:
        """Let all ranks choose new live entries together; the journal's entry."""
        table = self.table
        assert isinstance(table, PackedTable)
        candidates, visited = self._candidates()
        release_memory()  # the collecting steps before it and the rewire itself would add up
        owned = table.owned(borrow=True)
        try:
            gains = table.gains(owned.first, owned.last)
            if self.version == 0 and self.census is not None:
                self.census.begin(owned)
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
                evidence=self._evidence(owned, gains),
                observe=self._observe,
            )
            if self.config.sparsity.grow.kind == "momentum" and candidates is not None:
                self._remember(candidates, owned)
            if unit:
                rescale_to_unit(owned)
            table.put_back(owned)
        finally:
            table.end_loan()  # where something failed
        self.version = closed.version
        return closed.entry

    def _collect(self, rows: SparseRows | DenseRows, batch: Batch) -> None:
        """What needs no activations."""
        if self.config.sparsity.grow.kind == "co_occurrence":
            self.collector.collect_shared(rows, batch)
        self.live_seen.collect(rows, batch.candidates)

    def _candidates(self) -> tuple[Candidates | None, int]:
        """What the ranks together saw of positions of owned rows, and visits of these; None where nothing is gathered.
        A collective call."""
        grow, table = self.config.sparsity.grow, self.table
        assert isinstance(table, PackedTable)
        if not grow.gathers:
            return None, 0
        seen, visited = self.collector.send_to_owners(self.ranks, table.row_ranges)
        rows, columns, found = merge(seen, visited, normalise=grow.normalise)
        values = found.astype(np.float32)
        if grow.kind == "momentum":
            old, _ = self.momenta.send_to_owners(self.ranks, table.row_ranges)
            kept = carry(
                Momenta(old.rows, old.columns, old.gradients), Momenta(rows, columns, values), grow.decay, grow.explore
            )
            rows, columns, values = kept.rows, kept.columns, kept.values
        return Candidates(rows, columns, values), len(visited)

    def _remember(self, candidates: Candidates, owned: OwnedRows) -> None:
        """Keep what did not grow."""
        left = ~find_live(owned, candidates.rows, candidates.columns)
        rows, columns = torch.from_numpy(candidates.rows[left]), torch.from_numpy(candidates.columns[left])
        values = torch.from_numpy(candidates.scores[left])
        self.momenta.add(rows, columns, values, torch.empty(0, dtype=torch.int64))

    def _observe(self, owned: OwnedRows, grown: np.ndarray) -> dict[str, Any]:
        assert self.census is not None and isinstance(self.table, PackedTable)
        return self.census.take(owned, grown, self.table.row_ranges, self.version + 1)

    def _evidence(self, owned: OwnedRows, gains: np.ndarray) -> Evidence:
        """What the scores of live entries need, of all ranks; a collective call."""
        drop, positions, means, lengths, popularity = self.config.sparsity.drop, None, None, None, None
        assert isinstance(self.table, PackedTable)
        if drop.by_gradient:
            seen, visited = self.live_seen.send_to_owners(self.ranks, self.table.row_ranges)
            rows, columns, means = merge(seen, visited, normalise=drop.normalise)
            positions = rows * self.table.dims + columns
        if drop.kind == "activity":
            lengths = column_lengths(owned, gains, self.table.rows, self.ranks)
        if self.popularity is not None:
            popularity = self.popularity[owned.first : owned.last]
        return Evidence(positions, means, lengths, popularity, owned.first)

    def batch(self, block: HistoryBlock, step: int) -> Batch:
        """This rank's input of a step, on its device. It follows from block, seed, step and rank alone, so that a
        thread may make it before its step."""
        batch = make_batch(
            block,
            rows=self.table.rows,
            negatives=self.config.train.negatives,
            seed=self.config.run.seed,
            step=step,
            rank=self.ranks.rank,
        )
        return batch.to(self.device)

    def own_state(self) -> dict[str, np.ndarray]:
        """What no other rank has: growth candidates, and what this rank owes of its gradients."""
        owed = self.table.residuals_state() if isinstance(self.table, PackedTable) else {}
        costs = np.array([(version, *cost) for version, cost in self.costs.items()], np.float64).reshape(-1, 3)
        kept = {name: part for one in self._remembering() for name, part in one.state_dict().items()}
        return {**kept, **owed, "rewire_costs": costs}

    def load_own_state(self, state: dict[str, np.ndarray]) -> None:
        """Take up `own_state()` of a rank, too."""
        for one in self._remembering():
            one.load_state_dict(state)
        for version, seconds, sent in state["rewire_costs"].tolist():
            self.costs.setdefault(int(version), (seconds, sent))
        if isinstance(self.table, PackedTable):
            self.table.load_residuals(state)

    def _remembering(self) -> list[Sightings | Census]:
        parts: list[Sightings | Census] = [self.collector, self.live_seen, self.momenta]
        return parts if self.census is None else [*parts, self.census]

    def _generator(self, step: int) -> torch.Generator:
        """Of the input dropout: keyed, not carried, so that a resumed run draws what an uninterrupted one would."""
        key = (self.config.run.seed * 1_000_003 + step) * 65_537 + self.ranks.rank
        return torch.Generator().manual_seed(key % 2**63)

    def _set_rates(self, step: int) -> None:
        settings, share = self.config.train, 1.0
        if settings.decay == "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * (step - 1) / self.steps))
        self.table.set_rates(settings.learning_rate * share, settings.gain_learning_rate * share)

    def _check(self, loss: torch.Tensor, step: int) -> None:
        if not torch.isfinite(loss):
            raise NumericError(
                f"The loss of rank {self.ranks.rank} in step {step} is {loss.item()}.",
                cause="Training diverged; a smaller rate is the usual cure.",
                setting="train.learning_rate",
                value=self.config.train.learning_rate,
            )
