"""What the steps of a run are given, and how long they wait for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hse_dist.config import Config
from hse_dist.data.batch import Batch, make_batch
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.data.stream import HistoryStream
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.start import make_start
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.runs import small_config
from hse_dist.train import loop
from hse_dist.train.driver import train
from hse_dist.train.metrics import Waiting
from hse_dist.train.step import Trainer
from hse_dist.train.worker import train_worker

Found = dict[int, list[list[int]]]


class Interrupted(Exception):
    """What stops a run in these tests."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared histories of some 400 users over 150 items."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare(small_config(folder.parent / "run", folder))
    return folder


def plain(batch: Batch) -> list[list[int]]:
    return [part.tolist() for part in (batch.candidates, batch.offsets, batch.positions)]


def slow_batches(config: Config, ranks: int, rank: int) -> Found:
    """The batch of every step of a rank, made at its step."""
    prepared, found = Prepared(config.data.folder), {}
    stream = HistoryStream(
        prepared, config.data.stream, batch_size=config.train.batch_size, seed=config.run.seed, rank=rank, ranks=ranks
    )
    blocks = stream.read(config.train.epochs, lambda block, place: block)
    for step, (block, _) in enumerate(blocks, start=1):
        drawn = {"negatives": config.train.negatives, "seed": config.run.seed, "step": step, "rank": rank}
        found[step] = plain(make_batch(block, rows=prepared.items, **drawn))
    return found


def record(patch: pytest.MonkeyPatch, found: Found, stop: int = 0) -> None:
    """Note the batch of every step; raise before step `stop`."""
    run = Trainer.step

    def step(self: Trainer, batch: Batch, number: int, *following: Batch | None) -> Any:
        if number == stop:
            raise Interrupted
        found[number] = plain(batch)
        return run(self, batch, number, *following)

    patch.setattr(Trainer, "step", step)


@pytest.mark.parametrize("prefetch", [1, 4])
def test_every_step_has_the_batch_of_its_number_over_epochs_and_interruptions(tmp_path, data, prefetch):
    config = small_config(
        tmp_path / "run", data, data__stream={"prefetch": prefetch}, train__checkpoint_every=4, train__epochs=2
    )
    found: Found = {}
    for stop in (7, 19, 0):
        with pytest.MonkeyPatch.context() as patch:
            record(patch, found, stop)
            if stop:
                with pytest.raises(Interrupted):
                    train(config)
                found = {step: batch for step, batch in found.items() if step <= stop // 4 * 4}
            else:
                assert train(config)["resumed_from"] == 16
    assert found == slow_batches(config, 1, 0) and len(found) >= 20


def test_batches_are_made_in_another_thread_before_their_step(tmp_path, data, monkeypatch):
    made: dict[int, int] = {}
    ahead: list[bool] = []
    batch, step = Trainer.batch, Trainer.step

    def make(self: Trainer, block: Any, number: int) -> Batch:
        made[number] = threading.get_ident()
        return batch(self, block, number)

    def run(self: Trainer, given: Batch, number: int, *following: Batch | None) -> Any:
        ahead.append(number in made)
        return step(self, given, number, *following)

    monkeypatch.setattr(Trainer, "batch", make)
    monkeypatch.setattr(Trainer, "step", run)
    train(small_config(tmp_path / "run", data, train__epochs=2))
    assert all(ahead) and len(made) == len(ahead)
    assert len(set(made.values())) == 1 and threading.get_ident() not in made.values()


def worker(ranks: Ranks, config: Config, state: dict[str, Any]) -> tuple[Found, Any]:
    found: Found = {}
    with pytest.MonkeyPatch.context() as patch:
        record(patch, found)
        _fake_clock(patch, wait=3.0 if ranks.rank else 1.0)
        summary = train_worker(ranks, {"config": config, "server": None, "server_state": state})
    return found, summary


def _fake_clock(patch: pytest.MonkeyPatch, wait: float) -> None:
    """Every batch takes `wait` seconds to come and every step one second, to the clock of the loop."""
    now = [0.0]
    read, step = HistoryStream.read, Trainer.step

    def slow_read(self: HistoryStream, *arguments: Any) -> Iterator[Any]:
        for item in read(self, *arguments):
            now[0] += wait
            yield item

    def slow_step(self: Trainer, batch: Batch, number: int, *following: Batch | None) -> Any:
        now[0] += 1.0
        return step(self, batch, number, *following)

    patch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    patch.setattr(HistoryStream, "read", slow_read)
    patch.setattr(Trainer, "step", slow_step)


@pytest.mark.distributed
def test_each_rank_has_its_batches_and_the_share_of_the_slowest_is_shown(tmp_path, data):
    config = small_config(tmp_path / "run", data, train__epochs=2)
    RunFolder(config).claim()
    make_start(config, Prepared(config.data.folder), RunFolder(config).start)
    answers = run_ranks(worker, 2, config, SparsityServer(config.sparsity, 0, 1).state_dict())
    for rank, (found, summary) in enumerate(answers):
        assert found == slow_batches(config, 2, rank)
        assert summary["wait_share"] == pytest.approx(0.75)
    lines = [line for line in _lines(config) if line["kind"] == "train"]
    assert len(lines) >= 2 and all(line["wait_share"] == pytest.approx(0.75) for line in lines)


def _lines(config: Config) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder(config).metrics.read_text(encoding="utf-8").splitlines()]


def test_the_share_is_of_waits_and_steps():
    waiting = Waiting()
    assert waiting.share == 0
    waiting.add(waited=1.0, worked=2.0)
    waiting.add(waited=0.0, worked=1.0)
    assert waiting.share == 0.25
