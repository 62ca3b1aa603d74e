"""The loop around the step: epochs, validation, checkpoints, and going on where a checkpoint stopped.

In: a trainer, a stream, a store. Out: checkpoints of which the best by validation is the result. The start is validated
and stored as step 0, so that training never ends below its start.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from hse_dist.checkpoint.finding import Checkpoint
from hse_dist.checkpoint.reading import fitting
from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.config import Config
from hse_dist.data.batch import Batch
from hse_dist.data.prepared import HistoryBlock, Prepared
from hse_dist.data.stream import HistoryStream
from hse_dist.evaluate.ranking import rank_users
from hse_dist.files import new_file
from hse_dist.memory import resident_bytes
from hse_dist.progress import Meter
from hse_dist.ranks import KINDS
from hse_dist.run_folder import RunFolder, flat
from hse_dist.sparsity.tables import layout_state
from hse_dist.train.best import Best
from hse_dist.train.metrics import MetricsLog, Rates, Waiting
from hse_dist.train.step import StepResult, Trainer

REWIRE_METRICS = ("version", "live", "dropped", "grown", "restored", "fraction")

Report = Callable[[dict[str, Any], str], None]
"""Tells Ray Train of a checkpoint: metrics and its folder."""


@dataclass
class Totals:
    """Sums of this rank: loss, users, steps, bytes by kind since the last training line; bytes since the start."""

    loss: float = 0.0
    users: int = 0
    steps: int = 0
    wire: np.ndarray = field(default_factory=lambda: np.zeros(len(KINDS), np.int64))
    wire_in_all: np.ndarray = field(default_factory=lambda: np.zeros(len(KINDS), np.int64))

    def add(self, result: StepResult) -> None:
        """Add a step."""
        sent = np.array([result.wire_bytes[kind] for kind in KINDS])
        if result.loss is not None:
            self.loss, self.users, self.steps = self.loss + result.loss, self.users + result.users, self.steps + 1
        self.wire, self.wire_in_all = self.wire + sent, self.wire_in_all + sent

    def row(self) -> np.ndarray:
        """All of it as one row of numbers, float64, which may be summed over ranks."""
        return np.array([self.loss, self.users, self.steps, *self.wire, *self.wire_in_all], dtype=np.float64)

    @classmethod
    def of(cls, row: np.ndarray) -> Totals:
        """The totals of a row."""
        wire, in_all = row[3:].astype(np.int64).reshape(2, -1)
        return cls(float(row[0]), int(row[1]), int(row[2]), wire, in_all)


@dataclass
class Loop:
    """Everything a run needs, and the position in it."""

    config: Config
    trainer: Trainer
    stream: HistoryStream
    prepared: Prepared
    store: CheckpointStore
    folder: RunFolder
    report: Report
    meter: Meter = field(default_factory=Meter)
    """Of rank 0, for who waits for the job."""
    step: int = 0
    metric: float | None = None
    start_metric: float | None = None
    best: Best = field(init=False)
    saved: int | None = None
    """The step of this process's last checkpoint."""
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Name of this process's part in the run; that of rank 0 is in the run folder."""
    preempted: bool = False
    """Whether the run ended early because a rank was asked to stop."""
    totals: Totals = field(default_factory=Totals)
    waiting: Waiting = field(default_factory=Waiting)
    """Since the start of this process."""
    lately: Waiting = field(default_factory=Waiting)
    """Since the last training line."""
    unreported: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    """Checkpoints that Ray Train has not been told of, as they may not be committed yet."""

    def __post_init__(self) -> None:
        self.best = Best(self.config.train.better_by)

    @property
    def ranks(self) -> Any:
        return self.trainer.ranks

    def run(self, resumed: Checkpoint | None) -> dict[str, Any]:
        """Train from the start, or from a checkpoint, to the end; the summary of the run."""
        started = time.perf_counter()
        if resumed is not None:
            self._resume(resumed)
        first = self.ranks.rank == 0
        if first:
            self.folder.take_over(self.owner)
        if resumed is not None and first:  # a kill may have come between the checkpoint and its journal
            _write_journal(self.folder, self.trainer.journal(resumed.facts["server"]["journal"]))
        # what a run wrote that did not come to its first checkpoint belongs to no run
        metrics = MetricsLog(
            self.folder.path,
            first=first,
            step=self.step if resumed is not None else -1,
            sinks=self.config.metrics,
            settings=flat(self.config.model_dump(mode="json")),
        )
        with closing(metrics), self.store.settled():
            if resumed is None:
                self._validate(metrics)
                self._commit(metrics)
            if not self._out_of_patience():
                self._train(metrics, Rates(self.step, self.trainer.steps))
            bad_files = self._bad_files(metrics)
        self._report_saved()
        best = self.store.best()
        assert best is not None
        return {
            "run": str(self.folder.path),
            "steps": self.step,
            "preempted": self.preempted,
            "skipped": len(self.trainer.skipped),
            "bad_files": bad_files,
            "seconds": time.perf_counter() - started,
            "resumed_from": resumed.step if resumed is not None else None,
            "best_step": best.step,
            "start_valid": self.start_metric,
            "best_valid": best.metric,
            "live_entries": self.trainer.live,
            "wait_share": max(self.ranks.gather(self.waiting.share)),
            "wire_bytes": self._wire_bytes(),
        }

    def _bad_files(self, metrics: MetricsLog) -> list[str]:
        """Files that were left out, each once in the metrics. A collective call."""
        if self.config.data.on_bad_file != "skip":
            return []
        found: dict[str, str] = {}
        for bad in self.ranks.gather(self.stream.files.bad):
            found = bad | found
        for path in sorted(found.keys() - metrics.bad_files):
            metrics.write("bad_file", self.step, {"path": path, "what": found[path]})
        metrics.bad_files |= found.keys()
        return sorted(metrics.bad_files)

    def _wire_bytes(self) -> dict[str, int]:
        """Bytes that all ranks have sent in steps and rewires since the start of the run, by kind."""
        return _by_kind(self.ranks.sum(torch.from_numpy(self.totals.wire_in_all.copy())).numpy())

    def _out_of_patience(self) -> bool:
        return bool(self.config.train.patience) and self.best.worse >= self.config.train.patience

    def _train(self, metrics: MetricsLog, rates: Rates) -> None:
        """Every step up to the end, or until patience is out."""
        first = self.step + 1

        def make(block: HistoryBlock, place: int) -> Batch:
            return self.trainer.batch(block, first + place)

        # whatever ends the loop, the thread that reads ahead ends with it
        with closing(self.stream.read(self.config.train.epochs, make)) as batches:
            while True:
                began = time.perf_counter()
                batch, following = next(batches, (None, None))
                if batch is None:
                    return
                self._step(batch, following, metrics, rates, time.perf_counter() - began)
                if self._validates():
                    self._validate(metrics)
                    self._commit(metrics)
                    if self._out_of_patience():
                        return
                if self.trainer.guard.stop and following is not None:
                    if self.saved != self.step:
                        self._commit(metrics)
                    self.preempted = True
                    return

    def _step(self, batch: Batch, following: Batch | None, metrics: MetricsLog, rates: Rates, waited: float) -> None:
        settings, began = self.config.train, time.perf_counter()
        self.store.check()
        self.step += 1
        result = self.trainer.step(batch, self.step, following)
        worked = time.perf_counter() - began
        for waiting in (self.waiting, self.lately):
            waiting.add(waited, worked)
        metrics.observe_step(worked)
        self.totals.add(result)
        if self.step % settings.log_every == 0:
            self._log(metrics, rates)
        if result.rewired is not None:
            metrics.write("rewire", self.step, {name: result.rewired[name] for name in REWIRE_METRICS})
        # a step that ends an epoch with a validation has its checkpoint after that
        if settings.checkpoint_every and self.step % settings.checkpoint_every == 0 and not self._validates():
            self._commit(metrics)

    def _commit(self, metrics: MetricsLog) -> None:
        """A checkpoint of everything up to this step."""
        metrics.sync()
        self._save()
        self.metric, self.saved = None, self.step

    def _validates(self) -> bool:
        """Whether the step was the last of an epoch that ends with a validation."""
        ended, settings = self.stream.epoch_number, self.config.train
        return not self.stream.blocks and (ended % settings.evaluate_every == 0 or ended == settings.epochs)

    def _log(self, metrics: MetricsLog, rates: Rates) -> None:
        own = np.zeros((2, self.ranks.size))  # of each rank, the share of its time that it waits, and its memory
        own[:, self.ranks.rank] = self.lately.share, resident_bytes(os.getpid())
        mine = torch.from_numpy(np.concatenate([self.totals.row(), own.flat]))
        shared = self.ranks.sum(mine).numpy()
        together, (waits, memory) = Totals.of(shared[: -own.size]), shared[-own.size :].reshape(own.shape)
        self._bad_files(metrics)
        self.totals, self.lately = Totals(wire_in_all=self.totals.wire_in_all), Waiting()
        if self.ranks.rank == 0:
            steps, sent = together.steps // self.ranks.size, _by_kind(together.wire_in_all)
            loss = together.loss / together.steps if together.steps else None
            values, words = rates.line(self.step, loss, together.users, self.trainer.live, sent, float(waits.max()))
            values["memory_bytes"] = int(memory.max())
            self.meter(self.step / self.trainer.steps, together.users, words)
            values["wire_bytes_per_step"] = _by_kind(together.wire // max(steps, 1))
            if self.config.train.on_nan == "skip":
                values["skipped"] = len(self.trainer.skipped)
            if told := self.trainer.parameters.told():
                values["parameters"] = told
            metrics.write("train", self.step, values)

    def _validate(self, metrics: MetricsLog) -> None:
        if not self.prepared.users("valid"):
            return
        trainer = self.trainer
        found = rank_users(
            trainer.table, trainer.model, self.prepared, "valid", self.config.evaluate, self.ranks,
            features=trainer.features,
        )  # fmt: skip
        values = found.result()
        metric = float(values[self.config.evaluate.metric])
        if self.step == 0:
            self.start_metric = metric
        if trainer.within_budget:  # a table that is yet to lose entries is not what is to be judged
            self.metric = metric if self.best.judge(found.per_user()[self.config.evaluate.metric]) else None
        metrics.write("validate", self.step, {name: values[name] for name in ("ndcg@100", "recall@20", "recall@50")})

    def _save(self) -> None:
        server = self.trainer.transport.state_dict()
        facts = {
            "run": self.folder.identity,
            "step": self.step,
            "stream": self.stream.state_dict(),
            "server": server,
            "metric": self.metric,
            "start_metric": self.start_metric,
            **self.best.facts(),
        }
        own = {**self.trainer.own_state(), "totals": self.totals.row()}
        table = self.trainer.table
        shared = {**layout_state(table), **self.trainer.dense.state_dict(), "best_users": self.best.users}
        allowed = partial(self.folder.check_owner, self.owner)
        written = partial(_write_journal, self.folder, self.trainer.journal(server["journal"]))
        path = self.store.save(table.state_dict(), own, facts, self.ranks, shared, allowed, written)
        self.unreported.append(({"step": self.step, "valid": self.metric}, path))
        self._report_saved()

    def _report_saved(self) -> None:
        """Report what is committed; every rank at the same place, as Ray waits for all of them."""
        while len(self.unreported) > self.store.pending:
            self.report(*self.unreported.pop(0))

    def _resume(self, checkpoint: Checkpoint) -> None:
        self.store.load(checkpoint, self.trainer.table.state_dict())
        self.trainer.table.check_loaded()
        with fitting(checkpoint):
            self._take_up(checkpoint)

    def _take_up(self, checkpoint: Checkpoint) -> None:
        facts = checkpoint.facts
        self.step, self.start_metric = facts["step"], facts["start_metric"]
        shared = self.store.load_shared(checkpoint)
        self.trainer.dense.load_state_dict(shared)
        users = shared.get("best_users")
        if users is not None and (
            users.shape not in ((0,), (self.prepared.users("valid"),)) or users.dtype.kind != "f"
        ):
            raise ValueError(f"its best table's metrics are {users.dtype} {users.shape}")
        self.best.load(facts, users)
        row = self.totals.row()
        for own in self.store.load_own(checkpoint, self.ranks):
            self.trainer.load_own_state(own)
            row += own["totals"]
        self.totals = Totals.of(row)


def _by_kind(sent: np.ndarray) -> dict[str, int]:
    return dict(zip(KINDS, map(int, sent), strict=True))


def _write_journal(folder: RunFolder, journal: list[dict[str, Any]]) -> None:
    import json

    with new_file(folder.journal) as temporary:
        lines = (json.dumps(entry, sort_keys=True) + "\n" for entry in journal)
        temporary.write_text("".join(lines), encoding="utf-8")
