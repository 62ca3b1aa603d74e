"""What ranks and the SparsityServer say to each other: small, picklable, versioned.

A rewire is a fixed conversation, the same for all ranks: `Open`, histograms for each selection, `Close`. They count
entries, or blocks of columns that are live together; the journal has entries. Every message carries the version of the
decision that it belongs to, and every rank numbers its messages; so a message that is sent twice gets the same answer
twice, and one that does not fit is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hse_dist.errors import HseError
from hse_dist.sparsity.budget import RowNumbers

Purpose = Literal["drop", "grow", "restore"]
EventKind = Literal["repack", "remember", "rewind"]


@dataclass(frozen=True)
class Open:
    """A rank wants to rewire: its first row, its live entries, and those above their rows' floor.

    `rows_by_live`, int64 [n]: how many of its rows have 0, 1, 2 … live entries; for budgets that are kept row by row.
    """

    version: int
    step: int
    first_row: int
    live: int
    droppable: int
    rows_by_live: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Plan:
    """The answer to `Open`: drop and grow so many entries in all; the rest is for budgets that are kept row by row.

    Attributes:
        fraction: of a row's entries that may move.
        rows: what this rank's rows are cut down to; None: they keep their number.
    """

    version: int
    drop: int
    grow: int
    fraction: float
    rows: RowNumbers | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts of a rank's keys for the present query of a selection, int64 [bins]."""

    version: int
    purpose: Purpose
    counts: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Close:
    """What a rank did: the server checks the sum and writes the journal."""

    version: int
    step: int
    live: int
    dropped: int
    grown: int
    restored: int
    visits: int
    offered: int = 0
    """Positions that were not live and could have grown."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the journal says beside this, of all ranks together."""


@dataclass(frozen=True)
class Event:
    """All ranks did something else to the tables, by a decision that each of them made alike."""

    version: int
    step: int
    kind: EventKind
    facts: dict[str, int]


@dataclass(frozen=True)
class Closed:
    """The decision is final: the version of the tables from now on, and the journal's entry."""

    version: int
    entry: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """A rank cannot go on with this rewire; the answer to all ranks is its error, so that none waits for it."""

    version: int
    error: HseError


Message = Open | Histogram | Close | Event | Failed
