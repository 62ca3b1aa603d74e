"""What any policy of the registry has to keep: a contract that a new kind enters by its line there.

In: the registry. Out: for each kind of drop, grow and budget the same rewires of the same table on any number of ranks,
with what every kind may ask for: gradients of live and of other positions, popularity, columns. `check` holds the
rewires to what all policies promise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hse_dist.config import Config, StructureSettings, TrainSettings, parse_config
from hse_dist.ranks import Ranks
from hse_dist.sparsity.budget import row_numbers, rows_compete
from hse_dist.sparsity.client import GroupTransport
from hse_dist.sparsity.own import Entries
from hse_dist.sparsity.policies import POLICIES
from hse_dist.sparsity.schedule import LiveCounts, live_after
from hse_dist.sparsity.server import SparsityServer
from hse_dist.tables.sharded import OwnedRows, PackedTable
from hse_dist.testing.tables import Content, by_slot, join
from hse_dist.train.step import Trainer

ROWS, DIMS, WIDTH, FLOOR, CEILING = 29, 300, 8, 2, 40
REWIRES, STEPS = 2, 10
BLOCK, N, M = 4, 2, 8
COUNTS = 5000 // np.arange(1, ROWS + 1) ** 1
UNSEEN = (3, 20)
"""Rows that are no candidates in the window."""

SECTIONS = ("drop", "grow", "budget", "structure")
Case = tuple[str, str, str]
"""(section, kind, situation)."""


def cases() -> list[Case]:
    """Every kind of the registry, alone; with rows that keep their numbers; where nothing can grow; those of drop,
    budget and structure where the number of live entries falls; and those of drop and grow on blocks of columns."""
    kinds = [(policy.setting.split(".")[1], policy.kind) for policy in POLICIES]
    kinds = [(section, kind) for section, kind in kinds if section in SECTIONS and kind not in ("none", "single")]
    found = [(section, kind, "usual") for section, kind in kinds]
    found += [(section, kind, "by row") for section, kind in kinds if section != "budget"]
    found += [(section, kind, "nothing can grow") for section, kind in kinds if (section, kind) != ("grow", "random")]
    found += [(section, kind, "falls") for section, kind in kinds if section != "grow"]
    more = [("drop", "sensitivity", "falls by row"), ("drop", "soft_threshold", "falls by row")]
    more += [("drop", "magnitude", "popular"), ("drop", "movement", "popular"), ("grow", "momentum", "from memory")]
    more += [("structure", kind, "falls by row") for kind in ("block", "n_of_m")]
    more += [(section, kind, "in blocks") for section, kind in kinds if section in ("drop", "grow")]
    more += [("grow", "random", "in groups"), ("drop", "random", "in groups")]
    return [*found, *more]


def config_of(case: Case) -> Config:
    """The settings of a case."""
    section, kind, situation = case
    sparsity: dict[str, Any] = {"start": "random", "schedule": {"interval": 1, "stop": 1.0, "drop_fraction": 0.5}}
    sparsity["budget"] = {"floor": FLOOR, "ceiling": CEILING}
    sparsity["grow"] = {"window": 1, "explore": 6}
    sparsity["structure"] = {"block": BLOCK, "n": N, "m": M}
    if situation.startswith("in "):
        sparsity["structure"]["kind"] = "block" if situation == "in blocks" else "n_of_m"
    sparsity["drop"] = {"popularity_power": 0.5} if situation == "popular" else {}
    if situation.startswith("falls"):
        sparsity["schedule"] |= {"kind": "gradual", "fall": "linear", "fall_end": 0.4, "live_start": CEILING}
    if situation.endswith("by row"):
        sparsity["budget"]["kind"] = "row"
    sparsity[section]["kind"] = kind
    if kind == "own":
        sparsity[section]["function"] = f"{__name__}:of_row"
    item = {"dims": DIMS, "live": BLOCK, "chunk_width": WIDTH}
    return parse_config({"tables": {"item": item}, "sparsity": sparsity, "run": {"seed": 3}}, "of a test")


def of_row(entries: Entries) -> np.ndarray:
    """A drop score as a user might write one: the share of its row's energy."""
    energy = (entries.values**2).sum(1)
    return np.asarray(energy / np.maximum(np.bincount(entries.rows, energy)[entries.rows], 1e-30))


def rewires(ranks: Ranks, chosen: list[Case]) -> dict[Case, dict[str, Any]]:
    """For each case this rank's rows before and after each rewire, and the journal. A collective call."""
    contents = {kind: content(kind) for kind in sorted({structure_of(case) for case in chosen})}
    tables = {kind: one.table(ranks, "row_wise", TrainSettings(), with_gains=True) for kind, one in contents.items()}
    return {case: _rewires(ranks, case, tables[structure_of(case)]) for case in chosen}


def structure_of(case: Case) -> str:
    """The structure's kind in a case."""
    return config_of(case).sparsity.structure.kind


def content(kind: str) -> Content:
    """What the table holds before the first rewire."""
    structure = StructureSettings(kind=kind, block=BLOCK, n=N, m=M)  # type: ignore[arg-type]
    long_rows = {11: 160, 20: 48}
    return Content.random(5, ROWS, DIMS, WIDTH, longest=20, long_rows=long_rows, structure=structure)


def fall(kind: str) -> LiveCounts:
    """From how many entries to how many their number falls, where it does."""
    live, unit = int(content(kind).lengths.sum()), BLOCK if kind == "block" else 1
    return LiveCounts(live, live // (2 * unit) * unit, unit)


def _rewires(ranks: Ranks, case: Case, table: PackedTable) -> dict[str, Any]:
    config, kind = config_of(case), structure_of(case)
    table.put_back(content(kind).owned(*table.row_ranges[ranks.rank]))
    server = SparsityServer(config.sparsity, STEPS, ranks.size)
    if case[2].startswith("falls"):
        server.record_start("random", fall(kind))
    transport = GroupTransport(ranks, lambda: server)
    trainer = Trainer(config, table, transport, ranks, STEPS, counts=COUNTS)
    trainer.take_up(server.state_dict())
    history = []
    for step in range(1, REWIRES + 1):
        _see(trainer, ranks, step, nothing=case[2] == "nothing can grow" or (case[2] == "from memory" and step > 1))
        before = table.owned()
        trainer.rewire(step)
        history.append((before, table.owned()))
        _train(table)
        if step == 1:  # another trainer takes up what this one remembers, as after a restart
            trainer, old = Trainer(config, table, transport, ranks, STEPS, counts=COUNTS), trainer
            trainer.take_up(transport.state_dict())
            trainer.load_own_state(old.own_state())
    return {"history": history, "server": transport.state_dict()}


def _see(trainer: Trainer, ranks: Ranks, step: int, *, nothing: bool) -> None:
    """Each rank gets its own share, in an order that depends on the number of ranks, of the same sightings."""
    rng = np.random.default_rng(step)
    seen = np.setdiff1d(np.arange(ROWS), UNSEEN)
    rows, columns = rng.choice(seen, 0 if nothing else 700), rng.integers(0, DIMS, 0 if nothing else 700)
    visited = np.concatenate([seen, rng.choice(seen, 40)])
    _share(trainer.collector.load_state_dict, "", ranks, step, rows, columns, visited)
    owned = by_slot(join(ranks.gather(trainer.table.owned())))  # type: ignore[union-attr]
    live = owned.live & ~np.isin(owned.slot_rows(), UNSEEN)
    twice = np.tile(np.flatnonzero(live), 2)
    _share(
        trainer.live_seen.load_state_dict, "live_", ranks, step, owned.slot_rows()[twice], owned.columns[twice], visited
    )


def _share(
    load: Any, prefix: str, ranks: Ranks, step: int, rows: np.ndarray, columns: np.ndarray, visited: np.ndarray
) -> None:
    gradients = np.random.default_rng([step, len(prefix)]).normal(size=len(rows)).astype(np.float32)
    order = np.random.default_rng([step, ranks.size]).permutation(len(rows))[ranks.rank :: ranks.size]
    mine = {"rows": rows, "columns": columns.astype(np.int64), "gradients": gradients}
    state = {prefix + name: part[order] for name, part in mine.items()}
    load({**state, prefix + "visited": visited[ranks.rank :: ranks.size]})


def _train(table: PackedTable) -> None:
    """What has grown gets a value."""
    owned = table.owned()
    slots = by_slot(owned)
    grown = slots.live & (slots.values == 0)
    owned.values[grown] = np.sin(slots.slot_rows()[grown] * 7.0 + slots.columns[grown])
    table.put_back(owned)


def whole(answers: list[dict[Case, dict[str, Any]]], case: Case, step: int, moment: int) -> OwnedRows:
    """The table before (0) or after (1) a rewire, slot by slot."""
    return by_slot(join([answer[case]["history"][step][moment] for answer in answers]))


def check(case: Case, step: int, before: OwnedRows, after: OwnedRows, entry: dict[str, Any]) -> None:
    """What every policy promises of a rewire, and of what the journal says of it.

    Raises:
        AssertionError: it is not kept.
    """
    settings, rows = config_of(case).sparsity, before.slot_rows()
    was, now = before.live, after.live
    falls, counts, unit = case[2].startswith("falls"), fall(settings.structure.kind), settings.structure.unit
    expected = live_after(settings.schedule, counts, step + 1, STEPS) if falls else counts.start
    assert now.sum() == expected == entry["live"], "the live count is not that of the schedule"
    fewer = int(was.sum()) - expected
    assert (fewer > 0) == falls
    positions = rows[now] * DIMS + after.columns[now]
    assert len(np.unique(positions)) == len(positions), "a column occurs twice in a row"
    assert (after.values[~now] == 0).all(), "a free slot has a value"
    lengths, lengths_before = np.bincount(rows[now]), np.bincount(rows[was])
    assert (lengths >= np.minimum(lengths_before, FLOOR)).all(), "a row is below its floor"
    assert (lengths <= np.maximum(lengths_before, CEILING)).all(), "a row is above its ceiling"
    if not rows_compete(settings.budget):
        of_places, floor = lengths_before // unit, -(-FLOOR // unit)
        cut = row_numbers(np.bincount(of_places), expected // unit, floor).of(of_places) * unit
        assert np.array_equal(lengths, cut if falls else lengths_before), "a row's number is not its own"
    if settings.structure.kind == "block":
        _, together = np.unique(positions // BLOCK, return_counts=True)
        assert (together == BLOCK).all(), "a block is live in part"
    if settings.structure.kind == "n_of_m":
        _, together = np.unique(rows[now] * DIMS + after.columns[now] // M, return_counts=True)
        assert together.max() == N, "a group of columns has too many live entries, or none is full"
    assert entry["dropped"] == entry["grown"] + entry["restored"] + fewer
    assert entry["policy"] == {name: getattr(settings, name).kind for name in SECTIONS}
    came = np.setdiff1d(positions, rows[was] * DIMS + before.columns[was])
    assert len(came) == entry["grown"]
    if settings.drop.by_gradient and not (falls and not rows_compete(settings.budget)):
        kept = np.isin(rows[was] * DIMS + before.columns[was], positions)
        assert kept[np.isin(rows[was], UNSEEN)].all(), "an entry without a score was dropped"
    if case[2] == "nothing can grow":
        assert np.array_equal(before.columns, after.columns) and np.array_equal(before.values, after.values)
        assert entry["grown"] == 0 and entry["note"].startswith("nothing grew: there was no candidate")
    else:
        assert entry["grown"] > 5 and entry["note"] is None
    thirds = entry["tables"]["item"]
    assert thirds["live"] == entry["live"] == thirds["head"] + thirds["middle"] + thirds["tail"]
    assert entry["dead_columns"] == 1 - len(np.unique(after.columns[now])) / DIMS
    assert 0 <= entry["mean_age"] <= entry["version"]
    assert entry["live"] * 0.97 / (ROWS * DIMS) < entry["explored"] < 1
    assert all(value is None or np.isfinite(value) for value in entry["thresholds"].values())
