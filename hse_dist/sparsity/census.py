"""What the journal says of the tables after a rewire, counted by all ranks together.

In: the rows that this rank owns, and what has grown in them. Out: live entries by table and third of popularity, the
share of columns that no row uses, the mean age of a live entry, and the share of all positions that were ever live. All
are whole numbers, or follow from whole numbers, so they are equal on any number of ranks.

Ages are those of a keyed sample of rows: births of all entries would take as much memory as their columns. What was
ever live is counted by a sketch of 16 KiB that no number of positions fills: HyperLogLog (Flajolet et al., AofA 2007;
error 0.8 %), whose registers merge by their maximum, whoever saw what. The share of positions ever explored is what
in-time over-parameterization is about (Liu et al., ICML 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hse_dist.data.feature_rows import FeatureRows
from hse_dist.data.hashing import mix
from hse_dist.data.popularity import THIRDS, thirds
from hse_dist.ranks import Ranks
from hse_dist.sparsity.budget import row_blocks
from hse_dist.sparsity.growth import Ints
from hse_dist.sparsity.sightings import Sightings
from hse_dist.tables.sharded import OwnedRows

INDEX_BITS = 14
REGISTERS = 2**INDEX_BITS
REST_BITS = 64 - INDEX_BITS
SKETCH_SALT, SAMPLE_SALT = np.uint64(0x736B65746368), np.uint64(0x73616D706C65)


class Sketch:
    """How many different positions were seen; 16 KiB.

    Attributes:
        registers: uint8 [2^14].
    """

    def __init__(self) -> None:
        self.registers = np.zeros(REGISTERS, np.uint8)

    def add(self, positions: Ints) -> None:
        """positions int64 [n], any of them again."""
        words = mix(positions.astype(np.uint64) ^ SKETCH_SALT)
        rest = (words & np.uint64(2**REST_BITS - 1)).astype(np.float64)  # exact below 2^53
        leading = REST_BITS - np.frexp(rest)[1] + 1
        np.maximum.at(self.registers, (words >> np.uint64(REST_BITS)).astype(np.int64), leading.astype(np.uint8))


def estimate(registers: npt.NDArray[np.uint8]) -> float:
    """How many different positions the registers have seen."""
    raw = 0.7213 / (1 + 1.079 / REGISTERS) * REGISTERS**2 / np.exp2(-registers.astype(np.float64)).sum()
    empty = int(np.count_nonzero(registers == 0))
    if raw <= 2.5 * REGISTERS and empty:
        return float(REGISTERS * np.log(REGISTERS / empty))
    return float(raw)


@dataclass(frozen=True)
class Groups:
    """Rows that are counted together.

    Attributes:
        of_rows: uint16 [rows] of the whole table, each row's place in `names`; None: all rows are one group.
        names: (logical table, part of it) of each group; the part is empty where the table is one group.
        rows: of the table.
    """

    of_rows: npt.NDArray[np.uint16] | None
    names: tuple[tuple[str, str], ...]
    rows: int

    @classmethod
    def of(cls, counts: Ints | None, features: FeatureRows | None, rows: int) -> Groups:
        """Items by third of popularity, if their counts are known, and each feature's rows.

        Args:
            counts: training interactions of each row, int64 [rows].
        """
        if counts is None:
            return cls(None, (("item", ""),), rows)
        items = rows if features is None else features.items
        of_rows, names = thirds(counts[:items]).astype(np.uint16), [("item", third) for third in THIRDS]
        if features is not None:
            of_features = features.feature_of(np.arange(items, rows)) + len(THIRDS)
            of_rows = np.concatenate([of_rows, of_features.astype(np.uint16)])
            names += [(name, "") for name in features.names]
        return cls(of_rows, tuple(names), rows)

    def told(self, live: list[int]) -> dict[str, dict[str, int]]:
        """Live entries of each group, as a journal has them."""
        tables: dict[str, dict[str, int]] = {}
        for (table, part), count in zip(self.names, live, strict=True):
            entry = tables.setdefault(table, {"live": 0})
            entry["live"] += count
            if part:
                entry[part] = count
        return tables


class Census:
    """This rank's part of what is counted, and what it remembers from rewire to rewire.

    Args:
        groups: of rows. dims: of the table.
        sample: rows whose entries' ages are followed, about; 0: none.
        block: adjacent columns that are live together, which are one position here.
    """

    def __init__(self, ranks: Ranks, groups: Groups, dims: int, sample: int, block: int = 1) -> None:
        self.ranks, self.groups, self.rows, self.dims, self.block = ranks, groups, groups.rows, dims // block, block
        self.sample = min(sample, self.rows)
        self.sketch, self.births = Sketch(), Sightings("births_")

    def begin(self, owned: OwnedRows) -> None:
        """Before the first rewire: all that is live was ever live, and is born at version 0."""
        for first, last in row_blocks(owned.offsets):
            self.sketch.add(self._positions(owned, np.arange(first, last)))
        self._keep(self._sampled(owned), np.zeros(0, np.int64), np.zeros(0, np.int64), 0)

    def take(self, owned: OwnedRows, grown: Ints, row_ranges: list[tuple[int, int]], version: int) -> dict[str, Any]:
        """What the journal says of `version`, of all ranks; a collective call.

        Args:
            grown: row · dims + column of new entries, of blocks as the rows have them, int64 [n].
        """
        self.sketch.add(grown)
        registers = self.ranks.maximum(torch.from_numpy(self.sketch.registers.copy()).to(self.ranks.device))
        used = np.zeros(self.dims + 1, np.uint8)
        used[owned.columns] = 1
        together = self.ranks.maximum(torch.from_numpy(used[: self.dims]).to(self.ranks.device))
        ages = self._ages(owned, row_ranges, version)
        counts = self.ranks.sum(torch.from_numpy(np.concatenate([self._live(owned), ages])).to(self.ranks.device))
        live, total, followed = (counts[:-2] * self.block).tolist(), int(counts[-2]), int(counts[-1])
        return {
            "tables": self.groups.told(live),
            "dead_columns": 1.0 - int(together.sum(dtype=torch.int64)) / self.dims,
            "mean_age": total / followed if followed else None,
            "explored": estimate(registers.cpu().numpy()) / (self.rows * self.dims),
        }

    def _live(self, owned: OwnedRows) -> Ints:
        """Live entries by group, int64."""
        of_rows = np.zeros(owned.last - owned.first, np.int64)
        for first, last in row_blocks(owned.offsets):
            here = slice(owned.offsets[first], owned.offsets[last])
            ends = np.concatenate([[0], np.cumsum(owned.columns[here] < owned.dims)])
            of_rows[first:last] = np.diff(ends[owned.offsets[first : last + 1] - owned.offsets[first]])
        if self.groups.of_rows is None:
            return of_rows.sum(keepdims=True)
        sums = np.zeros(len(self.groups.names), np.int64)
        np.add.at(sums, self.groups.of_rows[owned.first : owned.last], of_rows)
        return sums

    def _ages(self, owned: OwnedRows, row_ranges: list[tuple[int, int]], version: int) -> Ints:
        """The sum of the ages of the sample's live entries, and their number, int64 [2]."""
        old, _ = self.births.send_to_owners(self.ranks, row_ranges)
        known = old.rows * self.dims + old.columns
        positions = self._sampled(owned)
        births = self._keep(positions, known, old.gradients.astype(np.int64), version)
        return np.array([(version - births).sum(), len(positions)], np.int64)

    def _keep(self, positions: Ints, known: Ints, births: Ints, version: int) -> Ints:
        """Remember what is live now; its births, int64 [n]."""
        order = np.argsort(known)
        known, births = known[order], births[order]
        found = np.full(len(positions), version, np.int64)
        if len(known):
            place = np.minimum(np.searchsorted(known, positions), len(known) - 1)
            found = np.where(known[place] == positions, births[place], version)
        rows, columns = np.divmod(positions, self.dims)
        parts = (torch.from_numpy(rows), torch.from_numpy(columns), torch.from_numpy(found.astype(np.float32)))
        self.births.add(*parts, torch.empty(0, dtype=torch.int64))
        return found

    def _sampled(self, owned: OwnedRows) -> Ints:
        """Positions of the live entries of owned rows that are in the sample, int64 [n]."""
        rows = np.arange(owned.first, owned.last)
        if self.sample < self.rows:
            share = mix(rows.astype(np.uint64) ^ SAMPLE_SALT) >> np.uint64(11)
            rows = rows[share.astype(np.float64) < self.sample / self.rows * 2.0**53]
        return self._positions(owned, rows - owned.first)

    def _positions(self, owned: OwnedRows, local: Ints) -> Ints:
        """row · dims + column of the live entries of some rows, counted from the rank's first."""
        begins, lengths = owned.offsets[local], np.diff(owned.offsets)[local]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        slots, rows = np.repeat(begins, lengths) + within, np.repeat(local + owned.first, lengths)
        live = owned.columns[slots] < owned.dims
        return rows[live] * self.dims + owned.columns[slots][live]

    def state_dict(self) -> dict[str, np.ndarray]:
        """What no other rank remembers."""
        return {"ever_live": self.sketch.registers.copy(), **self.births.state_dict()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Remember, too, what a rank did."""
        if "ever_live" in state:
            self.sketch.registers = np.maximum(self.sketch.registers, state["ever_live"])
        self.births.load_state_dict(state)
