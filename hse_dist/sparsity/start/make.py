"""Make a start: from prepared histories to a start folder, by the kind that the configuration names.

    local_inverse   pairs counted by tasks → ranges of items solved as tasks → parts by range of rows → global cut
                    (with `refit`: → what is left, by range of items → solved again → parts → cut again; before that
                    so many `cuts` that fall to the budget, and with `refine` patterns that grow before they are solved)
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
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.sparse as ss

from hse_dist.config import MAX_DIMS, Config, LocalInverseSettings
from hse_dist.data.prepared import HistoryBlock
from hse_dist.errors import ConfigError, DataError
from hse_dist.files import new_folder, write_json
from hse_dist.sparsity.budget import row_lengths
from hse_dist.sparsity.schedule import live_at_start
from hse_dist.sparsity.selection import RadixSelection
from hse_dist.sparsity.start.choose import Judge, best_of
from hse_dist.sparsity.start.cut import Budget, Doubles, NewSelection, cut
from hse_dist.sparsity.start.folder import VERSION, Ints, StartFolder, row_ranges, write_entries, write_rows
from hse_dist.sparsity.start.hse import factorize, strongest_entries
from hse_dist.sparsity.start.random_rows import random_entries, room
from hse_dist.sparsity.start.solving import Job, count_pairs, refit_all, solve_all
from hse_dist.sparsity.start.triples import Triples, write_parts
from hse_dist.sparsity.structure import row_limits
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


def make_start(
    config: Config,
    prepared: Histories,
    folder: str | Path,
    new_selection: NewSelection = RadixSelection,
    judge: Judge | None = None,
    seen: Seen = lambda _: None,
) -> StartFolder:
    """Make the start that the configuration names, or open it where `folder` holds it already.

    Args:
        judge: the worth of a start on validation; needed where the settings list several to choose from.
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
    makers: dict[str, Callable[..., dict[str, Any]]] = {
        "local_inverse": partial(_local_inverse, judge=judge),
        "hse": partial(_hse, judge=judge),
        "random": _random,
    }
    with new_folder(folder) as target:
        made = makers[config.sparsity.start](config, prepared, target, new_selection, seen)
        write_json(target / "manifest.json", _manifest(config, prepared, made))
    return StartFolder(folder)


def _manifest(config: Config, prepared: Histories, made: dict[str, Any]) -> dict[str, Any]:
    settings = start_settings(config, prepared)
    return {
        "version": VERSION,
        "kind": config.sparsity.start,
        "rows": prepared.items,
        "dims": settings["dims"],
        "ranges": [list(bounds) for bounds in row_ranges(prepared.items)],
        "settings": settings,
        **made,
    }


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
        "dims": _dims(config, prepared.items),
        "live": live_at_start(config),
        "row_norm": config.model.row_norm,
        "budget": sparsity.budget.model_dump(mode="json"),
        "structure": sparsity.structure.model_dump(mode="json"),
        sparsity.start: own,
    }


def _dims(config: Config, items: int) -> int:
    """D; one column an item, and what whole blocks need beside them."""
    dims, unit = config.tables.item.dims, config.sparsity.structure.unit
    items += config.tables.item.spare_columns
    return items + -items % unit if dims == "items" else dims


def _group(config: Config) -> tuple[int, int] | None:
    structure = config.sparsity.structure
    return (structure.n, structure.m) if structure.kind == "n_of_m" else None


def _existing(folder: str | Path) -> StartFolder | None:
    try:
        return StartFolder(folder)
    except DataError:
        return None


def _check(config: Config, items: int, dims: int) -> None:
    live, maximum = live_at_start(config), config.sparsity.hse.max_items
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
            setting="tables.item.live" if live == config.tables.item.live else "sparsity.schedule.live_start",
            value=live,
        )
    if live > room(dims, _group(config)):
        raise ConfigError(
            f"A row of {dims} columns can have {room(dims, _group(config))} live entries, fewer than are asked for.",
            cause="Ask for fewer, or allow more of each group of columns.",
            setting="sparsity.structure.n",
            value=config.sparsity.structure.n,
        )
    if config.sparsity.start == "hse" and items > maximum:
        raise ConfigError(
            f"The exact start would need items × items numbers on the driver, {8e-9 * items**2:.0f} GB.",
            cause='Take sparsity.start = "local_inverse", or raise the limit where there is memory.',
            setting="sparsity.hse.max_items",
            value=maximum,
        )


def _budget(config: Config, counts: Ints, times: int = 1) -> Budget:
    """What a cut leaves; of one that leaves more for those after it, so many times the final number."""
    live, budget, block = times * live_at_start(config), config.sparsity.budget, config.sparsity.structure.unit
    unit, total, structure = config.model.row_norm == "unit", live * len(counts) // block, (block, _group(config))
    if budget.kind == "row":
        return Budget(total, live // block, live // block, unit, None, *structure)
    power = budget.power if budget.kind == "popularity" else None
    floor, ceiling = row_limits(config.sparsity)
    return Budget(total, floor, times * ceiling, unit, power, *structure)


def _local_inverse(
    config: Config,
    prepared: Histories,
    target: Path,
    new_selection: NewSelection,
    seen: Seen,
    *,
    judge: Judge | None,
) -> dict[str, Any]:
    settings, gram = config.sparsity.local_inverse, target / "gram"
    seen("count")
    stages = _stages(settings)
    every = settings.pattern == "two_hop" or (config.sparsity.structure.unit > 1 and len(stages) > 1)
    sampled = count_pairs(prepared, settings, gram, every=every)

    def make(constant: float, folder: Path) -> dict[str, Any]:
        job, before = Job(gram, prepared.items, settings, constant), folder / "before"
        shifted, made = 0, dict[str, Any]()
        for index, (stage, times) in enumerate(stages):
            seen(stage)
            place = folder if index == len(stages) - 1 else folder / f"cut-{index}"
            if stage == "solve":
                shifted += solve_all(job, place / "work" / "parts")
                seen("cut")
            else:
                shifted += refit_all(job, before, place / "work", wider=stage == "refine")
                shutil.rmtree(before)
            made, before = _cut(config, prepared, place, None, new_selection, times), place
        if sampled:
            log.info("Of %d long histories a sample was counted; %d diagonals were raised.", sampled, shifted)
        return {"sampled_histories": sampled, "shifted_patterns": shifted, **made}

    made = _of_one_or_several(settings.regularization, config, prepared, target, make, judge)
    shutil.rmtree(gram)
    return made


def _stages(settings: LocalInverseSettings) -> list[tuple[str, int]]:
    """What comes before each cut, and how many times the final number of entries that cut leaves."""
    falling = [("refit" if left < settings.cuts - 1 else "solve", 2**left) for left in reversed(range(settings.cuts))]
    return falling + [("refine", 1)] * settings.refine + [("refit", 1)] * settings.refit


def _hse(
    config: Config,
    prepared: Histories,
    target: Path,
    new_selection: NewSelection,
    seen: Seen,
    *,
    judge: Judge | None,
) -> dict[str, Any]:
    settings, budget = config.sparsity.hse, _budget(config, prepared.counts())

    def make(constant: float, folder: Path) -> dict[str, Any]:
        seen("factorize")
        own = {"dropout": settings.dropout, "history_power": settings.history_power}
        factor, gains, multiple = factorize(prepared.matrix("train"), constant, **own)
        strongest = strongest_entries(factor, budget.ceiling, block=budget.block, group=budget.group)
        for index, triples in enumerate(strongest):
            write_parts(triples, folder / "work" / "parts", index)
        del factor
        seen("cut")
        return {"diagonal_multiple": multiple, **_cut(config, prepared, folder, gains, new_selection)}

    return _of_one_or_several(settings.regularization, config, prepared, target, make, judge)


def _of_one_or_several(
    constants: float | tuple[float, ...],
    config: Config,
    prepared: Histories,
    target: Path,
    make: Callable[[float, Path], dict[str, Any]],
    judge: Judge | None,
) -> dict[str, Any]:
    if isinstance(constants, float):
        return make(constants, target)
    return best_of(constants, target, make, partial(_manifest, config, prepared), judge)


def _cut(
    config: Config,
    prepared: Histories,
    target: Path,
    gains: Doubles | None,
    new_selection: NewSelection,
    times: int = 1,
) -> dict[str, Any]:
    """Cut the parts in `target/work` into the files of the start, and remove the work."""
    counts, settings = prepared.counts(), config.sparsity.local_inverse
    made = cut(
        target / "work",
        target,
        counts,
        _budget(config, counts, times),
        gains=gains,
        new_selection=new_selection,
        at_a_time=settings.tasks,
        gain_power=settings.gain_power if config.sparsity.start == "local_inverse" else 0.0,
    )
    shutil.rmtree(target / "work")
    return made


def _random(
    config: Config, prepared: Histories, target: Path, new_selection: NewSelection, seen: Seen
) -> dict[str, Any]:
    seen("random")
    item, budget = config.tables.item, config.sparsity.budget
    block, group = config.sparsity.structure.unit, _group(config)
    used = _dims(config, prepared.items) - item.spare_columns  # those are for items that come later
    dims, (floor, ceiling) = used // block, row_limits(config.sparsity)
    lengths = row_lengths(
        prepared.counts(),
        total=live_at_start(config) * prepared.items // block,
        power=budget.power if budget.kind == "popularity" else item.capacity_power,
        floor=floor,
        ceiling=min(ceiling, room(dims, group)),
    )
    draw = partial(random_entries, dims=dims, seed=config.run.seed, block=block, group=group)
    parts = [
        (target, index, first, lengths[first:last], draw)
        for index, (first, last) in enumerate(row_ranges(prepared.items))
    ]
    map_tasks(_write_random, parts, at_a_time=config.sparsity.local_inverse.tasks, label="start random")
    return {"live_entries": int(lengths.sum()) * block, "value_scale": 1.0, "gain_scale": 1.0}


def _write_random(part: tuple[Path, int, int, Ints, Callable[[Ints, int], Triples]]) -> None:
    target, index, first, lengths, draw = part
    entries = draw(lengths, first)
    write_entries(target, index, entries.rows, entries.columns, entries.values)
    live = np.bincount(entries.rows - first, minlength=len(lengths))
    write_rows(target, index, live, np.ones(len(lengths), np.float32))
