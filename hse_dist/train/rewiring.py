"""What changes a table's live entries while it trains: rewires, repacks, and a lottery's way back.

In: a packed table, the step, and what steps have seen since the last rewire: gradients of its entries and of other
positions. Out: the same table with other live entries, or another table with fewer slots, and the journal's entries.
All of it is collective. What is remembered from rewire to rewire (momenta, births) is keyed by row and column, so that
it outlives a repack.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import torch

from hse_dist.cluster import release_memory
from hse_dist.config import Config
from hse_dist.data.feature_rows import FeatureRows
from hse_dist.model.parameters import DenseParameters
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.sparsity.census import Census, Groups
from hse_dist.sparsity.client import Transport
from hse_dist.sparsity.collect import GrowthCollector
from hse_dist.sparsity.criteria import Evidence, LiveSightings, column_lengths, popularity_of
from hse_dist.sparsity.growth import merge
from hse_dist.sparsity.messages import Event, EventKind
from hse_dist.sparsity.momentum import Momenta, carry
from hse_dist.sparsity.rewind import early_values, remember, rewind
from hse_dist.sparsity.rewire import Candidates, rewire
from hse_dist.sparsity.schedule import (
    LiveCounts,
    live_after,
    only_falls_at,
    repacks,
    rewind_step,
    rewires_at,
    start_counts,
)
from hse_dist.sparsity.sightings import Sightings, check_positions
from hse_dist.sparsity.slots import find_live, rescale_to_unit
from hse_dist.sparsity.start import open_start
from hse_dist.sparsity.structure import block_positions
from hse_dist.tables.repack import packed_layout, put_in, take_out
from hse_dist.tables.sharded import DenseTable, OwnedRows, PackedTable

log = logging.getLogger(__name__)


class Rewirer:
    """A table and its live entries; a dense table keeps them all.

    Args:
        transport: to the SparsityServer.
        steps: length of the run on these ranks, for schedules.
        counts: training interactions of each row, int64 [rows]; None: all the same.
        features: of users and items, that have rows in the table.

    Attributes:
        items: the first rows of the table.
        table: the present one; a repack puts another in its place.
        version: of the table. rewires: how many there were; repacks and the like have versions, too.
        collector, live_seen: what steps have seen of positions that are not live, and of live entries.
        counts: where the number of live entries begins and ends; None where nobody recorded a start.
        live: live entries of the whole table, as of the last rewire; a dense table's are all.
    """

    def __init__(
        self,
        config: Config,
        table: PackedTable | DenseTable,
        transport: Transport,
        ranks: Ranks,
        steps: int,
        counts: np.ndarray | None = None,
        features: FeatureRows | None = None,
    ) -> None:
        self.config, self.table, self.transport, self.ranks, self.steps = config, table, transport, ranks, steps
        self.folder, self.features = RunFolder(config), features
        self.items = features.items if features else table.rows
        self.parameters = DenseParameters.of(config, features.names if features else ())
        self.block = config.sparsity.structure.unit
        self.collector = GrowthCollector(config.sparsity.grow, self.block)
        self.momenta = Sightings("momentum_")
        self.live_seen = LiveSightings(config.sparsity.drop)
        self.popularity = popularity_of(counts, config.sparsity.drop.popularity_power)
        self.census: Census | None = None
        if isinstance(table, PackedTable):
            groups = Groups.of(counts, features, table.rows)
            self.census = Census(ranks, groups, table.dims, config.sparsity.journal.ages, self.block)
        self.costs: dict[int, tuple[float, float]] = {}
        self.version, self.rewires = 0, 0
        self.remembered: int | None = None
        self.counts: LiveCounts | None = None
        self.live = table.rows * table.dims

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on from the server's state of a start or a checkpoint."""
        self.version, journal = state["version"], state["journal"]
        self.counts = start_counts(journal, self.block)
        if self.counts is not None:
            self.live = next(entry["live"] for entry in reversed(journal) if "live" in entry)
        self.rewires = sum("policy" in entry for entry in journal if entry["version"])
        self.remembered = next((entry["step"] for entry in journal if entry.get("kind") == "remember"), None)

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
        entry = self._timed_rewire(step)
        self.live = entry["live"]
        if falls and sparsity.schedule.kind == "lottery":
            self.rewind(step)
        if falls:
            self.repack(step)
        return entry

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
        candidates, visited = self._candidates(step)
        release_memory()  # the collecting steps before it and the rewire itself would add up
        owned = table.owned(borrow=True)
        try:
            gains = self._worth(table.gains(owned.first, owned.last), owned.first)
            if self.rewires == 0 and self.census is not None:
                self.census.begin(owned)
            unit = self.config.model.row_norm == "unit"
            if unit:
                rescale_to_unit(owned)  # the model sees rows at length 1, and so must the scores of their entries
            closed = rewire(
                owned,
                gains,
                self._by_block(candidates),
                self.transport,
                self.config.sparsity,
                version=self.version,
                step=step,
                seed=self.config.run.seed,
                visits=visited,
                evidence=self._evidence(owned, gains, step),
                observe=self._observe,
            )
            if self.config.sparsity.grow.kind == "momentum" and candidates is not None:
                self._keep_momenta(candidates, owned)
            if unit:
                rescale_to_unit(owned)
            table.put_back(owned)
        finally:
            table.end_loan()  # where something failed
        self.version, self.rewires = closed.version, self.rewires + 1
        return closed.entry

    def _worth(self, gains: np.ndarray, first: int) -> np.ndarray:
        """What the scores of live entries are multiplied by is the root of this: of items their gains, of features'
        rows the square of their weight, with which they are pooled. `first` is the first row."""
        if self.features is None:
            return gains
        weights = np.append(self.parameters.weights.detach().cpu().numpy(), np.float32(1.0))
        feature = self.features.feature_of(np.arange(first, first + len(gains)))
        return np.where(feature < 0, gains, weights[feature] ** 2)

    def _candidates(self, step: int) -> tuple[Candidates | None, int]:
        """What the ranks together saw of positions of owned rows, and visits of these; None where nothing is gathered.
        A collective call."""
        grow, table = self.config.sparsity.grow, self.table
        assert isinstance(table, PackedTable)
        if not grow.gathers:
            return None, 0
        if only_falls_at(self.config.sparsity, step, self.steps):  # what was gathered is for the next one that grows
            nothing = np.empty(0, np.int64)
            return Candidates(nothing, nothing, np.empty(0, np.float32)), 0
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

    def _by_block(self, candidates: Candidates | None) -> Candidates | None:
        """What grows as one, with one score."""
        if candidates is None:
            return None
        return Candidates(*block_positions(candidates.rows, candidates.columns, candidates.scores, self.block))

    def _keep_momenta(self, candidates: Candidates, owned: OwnedRows) -> None:
        """Keep what did not grow."""
        left = ~find_live(owned, candidates.rows, candidates.columns // self.block)
        rows, columns = torch.from_numpy(candidates.rows[left]), torch.from_numpy(candidates.columns[left])
        values = torch.from_numpy(candidates.scores[left])
        self.momenta.add(rows, columns, values, torch.empty(0, dtype=torch.int64))

    def _observe(self, owned: OwnedRows, grown: np.ndarray) -> dict[str, Any]:
        assert self.census is not None and isinstance(self.table, PackedTable)
        return self.census.take(owned, grown, self.table.row_ranges, self.rewires + 1)

    def _evidence(self, owned: OwnedRows, gains: np.ndarray, step: int) -> Evidence:
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
        return Evidence(positions, means, lengths, popularity, owned.first, reserve=self._falls(step))

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
        early = open_start(self.config, self.folder.start) if since is None else early_values(self.folder.early, since)
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

    def own_state(self) -> dict[str, np.ndarray]:
        """What no other rank has: growth candidates, and what this rank owes of its gradients."""
        owed = self.table.residuals_state() if isinstance(self.table, PackedTable) else {}
        costs = np.array([(version, *cost) for version, cost in self.costs.items()], np.float64).reshape(-1, 3)
        kept = {name: part for one in self._remembering() for name, part in one.state_dict().items()}
        return {**kept, **owed, "rewire_costs": costs}

    def load_own_state(self, state: dict[str, np.ndarray]) -> None:
        """Take up `own_state()` of a rank, too."""
        check_positions(state, self.table.rows, self.table.dims)
        for one in self._remembering():
            one.load_state_dict(state)
        for version, seconds, sent in state["rewire_costs"].tolist():
            self.costs.setdefault(int(version), (seconds, sent))
        if isinstance(self.table, PackedTable):
            self.table.load_residuals(state)

    def _remembering(self) -> list[Sightings | Census]:
        parts: list[Sightings | Census] = [self.collector, self.live_seen, self.momenta]
        return parts if self.census is None else [*parts, self.census]
