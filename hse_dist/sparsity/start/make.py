"""Make a start: from prepared histories to a start folder, by the kind that the configuration names.

    local_inverse   co-occurrence → ranges of items solved as tasks → parts by range of rows → global cut
    hse             exact factor on the driver                      → parts by range of rows → global cut
    random          ranges of rows, each by itself

In: a configuration, the prepared histories and a folder. Out: a `StartFolder`, with the same files
whatever the number of tasks. A folder that holds this very start already is used as it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.sparse as ss

from hse_dist.config import MAX_DIMS, Config, LocalInverseSettings
from hse_dist.data.prepared import HistoryBlock
from hse_dist.errors import ConfigError, DataError
from hse_dist.files import new_folder, write_json
from hse_dist.sparsity.selection import RadixSelection
from hse_dist.sparsity.start.cut import Budget, Doubles, NewSelection, cut
from hse_dist.sparsity.start.folder import VERSION, Ints, StartFolder, row_ranges, write_entries, write_rows
from hse_dist.sparsity.start.gram import Counting, Keep, open_co_occurrence, write_co_occurrence
from hse_dist.sparsity.start.history_files import SCAN_USERS, Sampling
from hse_dist.sparsity.start.hse import factorize, strongest_entries
from hse_dist.sparsity.start.local_inverse import Guard, solve_range
from hse_dist.sparsity.start.random_rows import random_entries, row_lengths
from hse_dist.sparsity.start.triples import write_parts
from hse_dist.tasks import map_tasks

log = logging.getLogger(__name__)


class Histories(Protocol):
    """What a start needs of the prepared data."""

    items: int
    manifest: dict[str, Any]

    def counts(self) -> Ints:
        """Training interactions of each item, int64 [items]."""

    def matrix(self, split: str) -> ss.csr_matrix:
        """Binary histories [users, items]."""

    def scan(self, split: str, *, batch_users: int) -> Iterator[HistoryBlock]:
        """The same, so many users at a time."""


Seen = Callable[[str], None]

PAIR_BYTES, ENTRY_BYTES = 48, 80
"""Memory that a task that solves takes for each pair of its items, and for each entry of their patterns."""


def make_start(
    config: Config,
    prepared: Histories,
    folder: str | Path,
    new_selection: NewSelection = RadixSelection,
    seen: Seen = lambda _: None,
) -> StartFolder:
    """Make the start that the configuration names, or open it where `folder` holds it already.

    Args:
        seen: told each stage as it begins.

    Raises:
        ConfigError: the catalogue does not fit the settings: fewer items than live entries, too many for
            `hse`, or more than there can be columns.
        NumericError: the Gram matrix is not positive definite, or a row has no length.
    """
    settings = start_settings(config, prepared)
    _check(config, prepared.items, settings["dims"])
    if (found := _existing(folder)) is not None and found.manifest["settings"] == settings:
        return found
    makers = {"local_inverse": _local_inverse, "hse": _hse, "random": _random}
    with new_folder(folder) as target:
        made = makers[config.sparsity.start](config, prepared, target, new_selection, seen)
        manifest = {
            "version": VERSION,
            "kind": config.sparsity.start,
            "rows": prepared.items,
            "dims": settings["dims"],
            "ranges": [list(bounds) for bounds in row_ranges(prepared.items)],
            "settings": settings,
            **made,
        }
        write_json(target / "manifest.json", manifest)
    return StartFolder(folder)


def start_settings(config: Config, prepared: Histories) -> dict[str, Any]:
    """Everything that the content of a start depends on, as JSON; equal settings make equal starts."""
    item, sparsity = config.tables.item, config.sparsity
    own: dict[str, Any] = {}
    if sparsity.start == "local_inverse":
        own = sparsity.local_inverse.model_dump(mode="json", exclude={"tasks", "memory_mb"})
    elif sparsity.start == "hse":
        own = sparsity.hse.model_dump(mode="json", exclude={"max_items"})
    else:
        own = {"seed": config.run.seed, "capacity_power": item.capacity_power}
    data = hashlib.sha256(json.dumps(prepared.manifest, sort_keys=True).encode()).hexdigest()
    return {
        "start": sparsity.start,
        "data": data,
        "dims": prepared.items if item.dims == "items" else item.dims,
        "live": item.live,
        "row_norm": config.model.row_norm,
        "budget": sparsity.budget.model_dump(mode="json"),
        sparsity.start: own,
    }


def _existing(folder: str | Path) -> StartFolder | None:
    try:
        return StartFolder(folder)
    except DataError:
        return None


def _check(config: Config, items: int, dims: int) -> None:
    live, maximum = config.tables.item.live, config.sparsity.hse.max_items
    if dims > MAX_DIMS:
        raise ConfigError(
            f"A row would have {dims} columns, one for each item of the catalogue; {MAX_DIMS} is the most.",
            cause="Give a number of columns; the random start takes any.",
            setting="tables.item.dims",
            value=config.tables.item.dims,
        )
    if live > dims:
        raise ConfigError(
            f"A row has {dims} columns ({items} items in the catalogue), fewer than the live entries asked for.",
            cause="Ask for fewer, or for more dims.",
            setting="tables.item.live",
            value=live,
        )
    if config.sparsity.start == "hse" and items > maximum:
        raise ConfigError(
            f"The exact start would need items × items numbers on the driver, {8e-9 * items**2:.0f} GB.",
            cause='Take sparsity.start = "local_inverse", or raise the limit where there is memory.',
            setting="sparsity.hse.max_items",
            value=maximum,
        )


def _budget(config: Config, rows: int) -> Budget:
    live, budget = config.tables.item.live, config.sparsity.budget
    unit = config.model.row_norm == "unit"
    if budget.kind == "row":
        return Budget(live * rows, live, live, unit)
    return Budget(live * rows, budget.floor, budget.ceiling, unit)


def _local_inverse(
    config: Config, prepared: Histories, target: Path, new_selection: NewSelection, seen: Seen
) -> dict[str, Any]:
    settings, work = config.sparsity.local_inverse, target / "work"
    memory, tasks = settings.memory_mb << 20, settings.tasks
    seen("count")
    counting = Counting(memory, tasks, Sampling(settings.max_history, settings.sample_seed))
    keep = Keep([partial(_diagonal, settings.regularization)], settings.entries)
    write_co_occurrence(prepared.scan("train", batch_users=SCAN_USERS), prepared.items, work / "gram", counting, keep)
    seen("solve")
    pairs = open_co_occurrence(work / "gram")
    bounds = pairwise(solve_bounds(pairs.offsets, settings.entries, memory, tasks))
    parts = [(work, settings, index, *own) for index, own in enumerate(bounds)]
    shifted = sum(map_tasks(_solve_part, parts, at_a_time=tasks, label="start solve"))
    if pairs.sampled:
        log.info(
            "Of %d long histories a sample was counted; the diagonals of %d patterns were raised.",
            pairs.sampled,
            shifted,
        )
    made = {"sampled_histories": pairs.sampled, "shifted_patterns": shifted}
    del pairs
    seen("cut")
    return {**made, **_cut(config, prepared, target, None, new_selection)}


def _diagonal(regularization: float, counts: Ints) -> Doubles:
    return counts.astype(np.float64) + regularization


def solve_bounds(offsets: Ints, entries: int, memory: int, tasks: int) -> list[int]:
    """Bounds of ranges of items that a task may solve at a time: at least `tasks` ranges, of equal cost about.

    Args:
        offsets: int64 [items + 1], where the pairs of each item begin. memory: bytes of a task.
    """
    items = len(offsets) - 1
    cost = (offsets[1:] - offsets[0]) * PAIR_BYTES + np.arange(1, items + 1) * entries * ENTRY_BYTES
    count = min(max(tasks, -(-int(cost[-1]) // memory)), items)
    inside = np.searchsorted(cost, cost[-1] * np.arange(1, count) / count)
    return sorted({0, items, *inside.tolist()})


def _solve_part(part: tuple[Path, LocalInverseSettings, int, int, int]) -> int:
    """Solve a range of items; how many patterns had to be shifted."""
    work, settings, index, first, last = part
    pairs = open_co_occurrence(work / "gram")
    guard = Guard() if pairs.sampled else None
    triples = solve_range(
        pairs, first, last, regularization=settings.regularization, size=settings.entries, guard=guard
    )
    write_parts(triples, work / "parts", index)
    return 0 if guard is None else guard.shifted


def _hse(config: Config, prepared: Histories, target: Path, new_selection: NewSelection, seen: Seen) -> dict[str, Any]:
    seen("factorize")
    factor, gains, multiple = factorize(prepared.matrix("train"), config.sparsity.hse.regularization)
    for index, triples in enumerate(strongest_entries(factor, _budget(config, prepared.items).ceiling)):
        write_parts(triples, target / "work" / "parts", index)
    del factor
    seen("cut")
    return {"diagonal_multiple": multiple, **_cut(config, prepared, target, gains, new_selection)}


def _cut(
    config: Config, prepared: Histories, target: Path, gains: Doubles | None, new_selection: NewSelection
) -> dict[str, Any]:
    """Cut the parts in `target/work` into the files of the start, and remove the work."""
    budget, tasks = _budget(config, prepared.items), config.sparsity.local_inverse.tasks
    made = cut(
        target / "work", target, prepared.items, budget, gains=gains, new_selection=new_selection, at_a_time=tasks
    )
    shutil.rmtree(target / "work")
    return made


def _random(
    config: Config, prepared: Histories, target: Path, new_selection: NewSelection, seen: Seen
) -> dict[str, Any]:
    seen("random")
    item, budget = config.tables.item, config.sparsity.budget
    dims = prepared.items if item.dims == "items" else item.dims
    lengths = row_lengths(
        prepared.counts(),
        live=item.live,
        power=item.capacity_power,
        floor=budget.floor,
        ceiling=min(budget.ceiling, dims),
    )
    seed = config.run.seed
    parts = [
        (target, index, first, lengths[first:last], dims, seed)
        for index, (first, last) in enumerate(row_ranges(prepared.items))
    ]
    map_tasks(_write_random, parts, at_a_time=config.sparsity.local_inverse.tasks, label="start random")
    return {"live_entries": int(lengths.sum()), "value_scale": 1.0, "gain_scale": 1.0}


def _write_random(part: tuple[Path, int, int, Ints, int, int]) -> None:
    target, index, first, lengths, dims, seed = part
    entries = random_entries(lengths, first, dims=dims, seed=seed)
    write_entries(target, index, entries.rows, entries.columns, entries.values)
    write_rows(target, index, lengths, np.ones(len(lengths), np.float32))
