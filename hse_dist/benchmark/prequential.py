"""`benchmark prequential`: what daily training is worth on the interactions of the next day.

In: the shape of a made-up log of some days, with new items on every day. Out: for three ways to keep a model, continued
every day with rows for the new items, trained from scratch every day, never trained again, nDCG@100 on what users do
the next day, over all items that are known by then and over those that are newer than the first day alone; and what a
day costs.

Prequential: each day is first a test, then training data. A user's history is all that came before the day; the targets
are what is not in it. A model that does not know an item misses it. All three read the same prepared versions.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hse_dist.benchmark.report import Chart, Report, spread
from hse_dist.config import Config, SyntheticSettings, parse_config
from hse_dist.data import synthetic
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import HistoryBlock, Prepared
from hse_dist.evaluate.metrics import DEPTH, Metrics
from hse_dist.export.recommender import Recommender
from hse_dist.export.writer import export
from hse_dist.train.driver import train

WAYS = ("continued", "retrained", "never")
FIRST, KNOWN = 0.5, 0.6
"""Share of the interactions, and of the items, that are there on the first day."""
RATES = {"hse": 0.01, "random": 0.3, "local_inverse": 0.003}
"""A learning rate that suits each start."""
Day = tuple[np.ndarray, np.ndarray, np.ndarray]


def benchmark_prequential(
    *,
    users: int = 3000,
    items: int = 1500,
    history: int = 30,
    days: int = 8,
    live: int = 16,
    epochs: int = 5,
    daily_epochs: int = 1,
    start: str = "hse",
    continues_from: str = "best",
    seed: int = 0,
) -> Report:
    """Replay the days.

    Args:
        users, items, history: of the made-up log. days: of training and tests, beside the first. live: k.
        epochs: of a training from scratch. daily_epochs: of a day's continuation. start: of a training from scratch.
        continues_from: which checkpoint of the day before is continued.

    Returns:
        figures `ndcg_WAY`, `ndcg_new_WAY` (means over the days, weighted by users) and `seconds_a_day_WAY` (medians).
    """
    made = SyntheticSettings(users=users, items=items, mean_history=history, seed=seed)
    log = synthetic.days(made, days + 1, first=FIRST, known=KNOWN)
    shape: dict[str, Any] = {"live": live, "epochs": epochs, "daily_epochs": daily_epochs}
    shape |= {"start": start, "continues_from": continues_from, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        replay = _Replay(Path(folder), log, shape)
        replay.train_first()
        for day in range(1, days + 1):
            replay.test(day)
            if day < days:  # nothing is tested after the last day
                replay.train(day)
        return _report(replay, {"users": users, "items": items, "history": history, "days": days, **shape})


@dataclass
class _Found:
    """What was measured of one way."""

    scores: list[tuple[float, int]] = field(default_factory=list)
    new: list[tuple[float, int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def mean(self, name: str) -> float:
        """Over all users of all days."""
        values, users = np.array(getattr(self, name)).reshape(-1, 2).T
        return float((values * users).sum() / max(users.sum(), 1))


class _Replay:
    """The days, and the models of now."""

    def __init__(self, folder: Path, log: list[Day], shape: dict[str, Any]) -> None:
        self.folder, self.log, self.shape = folder, log, shape
        self.models: dict[str, Recommender] = {}
        self.runs: dict[str, str] = {}
        self.found = {way: _Found() for way in WAYS}
        self.seconds_to_prepare: list[float] = []
        self.first_items = 0

    def train_first(self) -> None:
        """The first day: one model for all."""
        self._prepare(0)
        self.first_items = Prepared(self.folder / "data-0").items
        model, run = self._train(0, "first", None)
        self.models, self.runs = dict.fromkeys(WAYS, model), {"continued": run}

    def train(self, day: int) -> None:
        """A day has come to its end."""
        self._prepare(day)
        for way in ("continued", "retrained") if day % 2 else ("retrained", "continued"):
            began = time.perf_counter()
            before = self.runs["continued"] if way == "continued" else None
            self.models[way], self.runs[way] = self._train(day, way, before)
            self.found[way].seconds.append(time.perf_counter() - began)

    def test(self, day: int) -> None:
        """Rank for the users of a day what they have not seen before it."""
        prepared = Prepared(self.folder / f"data-{day - 1}")
        rows_of = Recommender.rows_of
        histories, targets = _histories(self.log, day, prepared)
        newer = (np.arange(prepared.items) >= self.first_items).astype(np.uint8)
        for way, model in self.models.items():
            places = rows_of(model, prepared.item_ids())
            row_there = np.full(len(model.item_ids), -1, np.int64)
            row_there[places[places >= 0]] = np.flatnonzero(places >= 0)
            mine = _known(histories, places)
            top, _ = model.recommend_rows(mine.offsets, mine.rows, DEPTH)
            top = np.where(top >= 0, row_there[np.maximum(top, 0)], -1)
            metrics = Metrics(newer)
            metrics.add(top, targets.offsets, targets.rows, np.arange(len(targets)))
            result = metrics.result()
            self.found[way].scores.append((result["ndcg@100"], result["users"]))
            new = result["thirds"]["middle"]  # the second group: what is newer
            self.found[way].new.append((new["ndcg@100"] or 0.0, new["users"]))

    def _prepare(self, day: int) -> None:
        users, items, times = self.log[day]
        path = self.folder / "log" / f"day={day:03d}" / "part.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": times}), path)
        began = time.perf_counter()
        prepare(self._config(day, "", None), extend=self.folder / f"data-{day - 1}" if day else None)
        if day:
            self.seconds_to_prepare.append(time.perf_counter() - began)

    def _train(self, day: int, way: str, before: str | None) -> tuple[Recommender, str]:
        config = self._config(day, way, before)
        train(config)
        return Recommender.load(export(config)["folder"]), config.run.folder

    def _config(self, day: int, way: str, before: str | None) -> Config:
        shape, kind = self.shape, self.shape["start"]
        items = len(set(self.log[0][1].tolist()))
        raw: dict[str, Any] = {
            "run": {
                "folder": str(self.folder / f"run-{way}-{day}"),
                "continues": before,
                "continues_from": shape["continues_from"],
                "seed": shape["seed"],
            },
            "data": {
                "source": str(self.folder / "log"),
                "folder": str(self.folder / f"data-{day}"),
                "extendable": True,
                "users_per_row_group": 128,
                "columns": {"timestamp": "timestamp"},
                "split": {"valid": 0.05, "test": 0.0},
            },
            "tables": {"item": {"live": shape["live"], "chunk_width": 8, "slack": 0.25, "spare_columns": items}},
            "model": {"row_norm": "free" if kind == "local_inverse" else "unit", "input_dropout": 0.5},
            "sparsity": {
                "start": kind,
                "budget": {"ceiling": 4 * shape["live"]},
                "schedule": {"interval": 10, "drop_fraction": 0.1},
            },
            "train": {
                "epochs": shape["daily_epochs"] if before else shape["epochs"],
                "evaluate_every": 100,
                "better_by": 0.0,
                "batch_size": 128,
                "negatives": 512,
                "learning_rate": RATES[kind],
                "warm_accumulator": 0.1,
            },
            "cluster": {"workers": 0},
            "metrics": {"sinks": []},
        }
        return parse_config(raw, "of the benchmark")


def _histories(log: list[Day], day: int, prepared: Prepared) -> tuple[HistoryBlock, HistoryBlock]:
    """What users of a day did before it, and what new to them on it, in rows of `prepared`; users with both alone."""
    ids = prepared.item_ids().to_numpy()
    order = np.argsort(ids)
    ids = ids[order]

    def keys(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        places = np.minimum(np.searchsorted(ids, items), len(ids) - 1)
        known = ids[places] == items
        found: np.ndarray = np.unique(users[known] * len(ids) + order[places[known]])
        return found

    past = keys(*(np.concatenate([log[number][part] for number in range(day)]) for part in (0, 1)))
    now = np.setdiff1d(keys(*log[day][:2]), past)
    users = np.intersect1d(past // len(ids), now // len(ids))
    return _block(past, users, len(ids)), _block(now, users, len(ids))


def _block(keys: np.ndarray, users: np.ndarray, items: int) -> HistoryBlock:
    owners, rows = keys // items, keys % items
    mine = np.isin(owners, users)
    counts = np.bincount(np.searchsorted(users, owners[mine]), minlength=len(users))
    return HistoryBlock(np.concatenate([[0], np.cumsum(counts)]), rows[mine])


def _known(block: HistoryBlock, places: np.ndarray) -> HistoryBlock:
    """The histories in rows of a model, without what it does not know."""
    owner, rows = np.repeat(np.arange(len(block)), np.diff(block.offsets)), places[block.rows]
    counts = np.bincount(owner[rows >= 0], minlength=len(block))
    return HistoryBlock(np.concatenate([[0], np.cumsum(counts)]), rows[rows >= 0])


def _report(replay: _Replay, shape: dict[str, Any]) -> Report:
    figures: dict[str, float | int | str] = {}
    rows = []
    for way, found in replay.found.items():
        figures[f"ndcg_{way}"], figures[f"ndcg_new_{way}"] = found.mean("scores"), found.mean("new")
        seconds = spread(found.seconds) if found.seconds else 0.0
        figures[f"seconds_a_day_{way}"] = seconds["median"] if isinstance(seconds, dict) else seconds
        rows.append(
            {
                "model": way,
                "nDCG@100, next day": found.mean("scores"),
                "of newer items": found.mean("new"),
                "on the last day": found.scores[-1][0],
                "seconds a day": seconds,
            }
        )
    figures["users_tested"] = sum(users for _, users in replay.found["never"].scores)
    if replay.seconds_to_prepare:
        figures["seconds_to_prepare"] = float(np.median(replay.seconds_to_prepare))
    return Report(
        kind="prequential",
        figures=figures,
        rows=rows,
        shape=shape,
        notes=["seconds a day are those of training and export; preparing the day's version comes to all"],
        chart=Chart(
            title="Quality on the next day",
            y_label="nDCG@100",
            x_label="day",
            series={way: [score for score, _ in found.scores] for way, found in replay.found.items()},
            x=[float(day) for day in range(1, len(replay.found["never"].scores) + 1)],
            kind="lines",
        ),
    )
