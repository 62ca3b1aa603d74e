"""From what was asked for to the cells of the matrix.

In: names, budgets and seeds. Out: cells, cheap ones first. All mistakes come before anything runs: names that are not
known, settings that contradict each other, logs that are not there, each with the name of its data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hse_dist.baselines.registry import BASELINES
from hse_dist.benchmark.quality.settings import (
    LIVE_BYTES,
    METHODS,
    TEACHER,
    TEACHER_BYTES,
    is_taught,
    overrides,
    seeds_of,
)
from hse_dist.benchmark.quality.store import Cell, Store
from hse_dist.config import Config, dump_config, load_config
from hse_dist.data import catalog
from hse_dist.data.made_with import content_settings, is_prepared
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.data.source import find_files
from hse_dist.errors import ConfigError, DataError
from hse_dist.run_folder import FREE, flat

SECONDS: dict[str, tuple[float, float, float]] = {
    "popularity": (1e-6, 0.0, 0.0),
    "ours-start": (5e-5, 0.0, 0.0),
    "item-knn": (2e-4, 0.0, 0.0),
    "item-knn-full": (2e-4, 0.0, 0.0),
    "als": (1e-3, 0.0, 0.0),
    "dense": (0.0, 4e-6, 0.0),
    "gradual-topk": (0.0, 16e-6, 0.0),
}
"""What a cell takes on one core, about: for each interaction, for each user × item, for each item³."""
OURS, FACTORED = (2e-4, 0.0, 0.0), (0.0, 0.0, 5e-11)
"""The same of our other methods, and of baselines that are not named: they factor items × items."""


@dataclass(frozen=True)
class Request:
    """What was asked for, checked: everything has its default."""

    data: tuple[str, ...]
    methods: tuple[str, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...] | None
    configs: Path

    def seeds_of(self, data: str) -> tuple[int, ...]:
        return self.seeds or seeds_of(data)

    def __post_init__(self) -> None:
        known = [*METHODS, *BASELINES]
        strange = [name for name in self.methods if name not in known]
        if strange:
            raise ConfigError(
                f"There is no method {', '.join(strange)}.",
                cause=f"There are {', '.join(known)}.",
                setting="--methods",
                value=",".join(self.methods),
            )
        odd = [budget for budget in self.budgets if budget % LIVE_BYTES]
        if odd:
            raise ConfigError(
                f"A live entry takes {LIVE_BYTES} bytes: {', '.join(map(str, odd))} is no multiple of that.",
                setting="--bytes",
                value=",".join(map(str, self.budgets)),
            )


def check_sources(request: Request) -> None:
    """See to it that every data set can be read; what the catalogue has is fetched.

    Raises:
        ConfigError, DataError: names each data set without a configuration or without a log.
    """
    problems = []
    for name in request.data:
        try:
            settings = load_config(request.configs / f"{name}.toml").data
            if settings.source.startswith(catalog.PREFIX):
                catalog.fetch(settings.source.removeprefix(catalog.PREFIX))
            elif settings.synthetic is None:
                find_files(settings.source, settings.format, settings.schemes)
        except (ConfigError, DataError) as error:
            problems.append(f"\n  - {name}: {error}")
    if problems:
        raise DataError(
            f"Not all data sets are there:{''.join(problems)}", setting="--data", value=",".join(request.data)
        )


def open_data(request: Request, store: Store, *, make: bool = True) -> dict[tuple[str, int], Prepared]:
    """The prepared histories of every data set and seed, made where they are missing, or left out without `make`.

    Raises:
        HseError: a log cannot be prepared.
    """
    found = {}
    for name in request.data:
        for seed in request.seeds_of(name):
            config = _config(request, store, name, seed)
            with store.lock(f"data.{name}.{seed}", wait=True):
                there = is_prepared(config)
                if make and not there:
                    prepare(config)
            if make or there:
                found[name, seed] = Prepared(config.data.folder)
    return found


def make_cells(request: Request, store: Store, data: dict[tuple[str, int], Prepared]) -> list[Cell]:
    """All cells that were asked for, of the data that are there: every first seed before any second, then cheap first.

    Raises:
        ConfigError: settings of `ours` contradict each other.
    """
    cells = []
    for (name, seed), prepared in data.items():
        fingerprint = prepared.fingerprint
        for method in request.methods:
            sized = method in METHODS or BASELINES[method].sized
            for budget in request.budgets if sized else (None,):
                cost = expected_seconds(method, prepared.manifest)
                own: dict[str, Any] = {}
                if method in METHODS:
                    assert budget is not None
                    own = _of_ours(request, store, name, method, budget, seed)
                folder = str(prepared.folder)
                cells.append(Cell(name, method, budget, seed, folder, fingerprint, cost, **own))
    turn = {(name, seed): request.seeds_of(name).index(seed) for name, seed in data}
    # cells of a group stand together where their costs are equal: they share a process, and its factorization
    return sorted(
        cells, key=lambda cell: (turn[cell.data, cell.seed], cell.cost, cell.group, cell.method, cell.budget or 0)
    )


def expected_seconds(method: str, manifest: Mapping[str, Any]) -> float:
    """About how long a cell takes on one core: good for an order, and for nothing else."""
    interaction, pair, cube = SECONDS.get(method, OURS if method in METHODS else FACTORED)
    items, users = manifest["items"], sum(manifest["users"].values())
    return float(interaction * manifest["interactions"] + pair * items * users + cube * items**3)


def settings_that_decide(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """(those that differ from the defaults, all), flat; the histories' own are in the fingerprint."""
    kept_apart = (*FREE, *(f"data.{name}" for name in content_settings(config.data)))
    parts = []
    for tree in (config.model_dump(mode="json", exclude_defaults=True), json.loads(dump_config(config))):
        parts.append({key: value for key, value in flat(tree).items() if not key.startswith(kept_apart)})
    return parts[0], parts[1]


def _of_ours(request: Request, store: Store, data: str, method: str, budget: int, seed: int) -> dict[str, Any]:
    base = _config(request, store, data, seed)
    config = _config(request, store, data, seed, overrides(base, data, method, budget))
    changed, whole = settings_that_decide(config)
    if not is_taught(data, method, budget):
        return {"config": config, "changed": changed, "whole": whole}
    teacher = _config(request, store, data, seed, overrides(base, data, TEACHER, TEACHER_BYTES))
    its_changed, its_whole = settings_that_decide(teacher)
    whole |= flat({"teacher": its_whole})  # one by one, so that a setting that is new changes nothing here either
    return {"config": config, "teacher": teacher, "changed": {**changed, "teacher": its_changed}, "whole": whole}


def _config(request: Request, store: Store, data: str, seed: int, more: Sequence[str] = ()) -> Config:
    """The configuration of a data set and a seed, in this process; other ways to prepare have other folders."""
    path = request.configs / f"{data}.toml"
    words = [f"data.split.seed={seed}", f"run.seed={seed}", "cluster.workers=0", "run.resume=auto", *more]
    config = load_config(path, words)
    content = json.dumps(content_settings(config.data), sort_keys=True)
    folder = store.folder / "data" / f"{data}-{seed}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return config.model_copy(update={"data": config.data.model_copy(update={"folder": str(folder)})})
