"""`benchmark stream`: does training wait for its data?

In: the shape of `benchmark step`. Out: the share of their time that training steps wait for batches which the reading
thread makes of histories on disk, on one rank; and histories a second of that training, of the thread alone, of the
stream without batches, and of a plain pyarrow scan of the same Parquet files.

Histories are of the `items` most popular rows, and as many negatives come from all rows of the table as make
the candidates of a batch those of the shape. Steps are those of a run (`Trainer`), without rewiring. The first steps do
not count: before them the thread opens its windows.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch

from hse_dist.benchmark.report import Chart, Report, spread
from hse_dist.benchmark.step import packed_table
from hse_dist.cluster import prepare_process
from hse_dist.config import ClusterSettings, Config, parse_config
from hse_dist.data.batch import Batch
from hse_dist.data.made_with import open_prepared
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import HistoryBlock, Prepared
from hse_dist.data.stream import HistoryStream
from hse_dist.ranks import Ranks, free_address, process_group
from hse_dist.sparsity.client import GroupTransport
from hse_dist.sparsity.server import SparsityServer
from hse_dist.train.metrics import Waiting
from hse_dist.train.step import Trainer

MOST_WAITING = 0.03
"""Target: the share of time that steps wait."""
WARM_STEPS = 4
NAMES = {
    "training": "training steps",
    "thread": "reading thread alone, with batches",
    "stream": "stream alone, without batches",
    "scan": "pyarrow scan",
}


@dataclass
class Rates:
    """Of every repeat: histories and interactions a second."""

    histories: list[float] = field(default_factory=list)
    interactions: list[float] = field(default_factory=list)

    def add(self, sizes: Iterator[tuple[int, int]]) -> None:
        """Go through the (histories, interactions) of blocks, and note how many came a second."""
        began, histories, interactions = time.perf_counter(), 0, 0
        for users, entries in sizes:
            histories, interactions = histories + users, interactions + entries
        seconds = time.perf_counter() - began
        self.histories.append(histories / seconds)
        self.interactions.append(interactions / seconds)


def benchmark_stream(
    *,
    candidates: int = 8192,
    live: int = 32,
    dims: int = 4096,
    users: int = 512,
    history: int = 80,
    items: int = 8192,
    rows: int = 200_000,
    chunk_width: int = 32,
    steps: int = 60,
    repeats: int = 3,
    threads: int | None = None,
) -> Report:
    """Medians of `repeats` epochs of `steps` steps.

    Args:
        candidates: C, rows looked up a step. live: k, live entries a row. dims: D. users: B, of a batch. history: mean
            items a user, before those that come twice are merged (of 80, 60 are left). items: rows that histories are
            of. rows: of the table. chunk_width: w, slots a chunk.

    Returns:
        figures `wait_share`, and of the reading thread alone `histories_per_second` and `interactions_per_second`; a
        row for training, the thread, the stream and the scan.
    """
    threads = threads or os.cpu_count() or 1
    prepare_process(ClusterSettings(cpus_per_worker=threads))
    shape = {"candidates": candidates, "live": live, "dims": dims, "users": users, "history": history, "items": items}
    shape |= {"rows": rows, "chunk_width": chunk_width, "steps": steps, "repeats": repeats, "threads": threads}
    found = {name: Rates() for name in NAMES}
    shares: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        process_group(0, 1, free_address(), torch.device("cpu"), 600.0) as ranks,
    ):
        config = _config(shape, folder, 0)
        prepare(config)
        prepared = open_prepared(config)
        shape["interactions"] = prepared.manifest["interactions"]
        shape["negatives"] = max(1, candidates - _distinct(_stream(prepared, config)))
        trainer = _trainer(_config(shape, folder, shape["negatives"]), shape, ranks)
        for _ in range(repeats):
            waiting = Waiting()
            found["training"].add(_train(trainer, _stream(prepared, config), waiting))
            shares.append(waiting.share)
            found["thread"].add(_thread(trainer, _stream(prepared, config)))
            found["stream"].add(size for size, _ in _stream(prepared, config).read(1, _size))
            found["scan"].add(_size(block, 0) for block in prepared.scan("train"))
    return _report(shares, found, shape)


def _config(shape: dict[str, int], folder: str, negatives: int) -> Config:
    made = {
        "users": shape["users"] * (shape["steps"] + WARM_STEPS),
        "items": shape["items"],
        "mean_history": shape["history"],
    }
    return parse_config(
        {
            "run": {"folder": f"{folder}/run"},
            "data": {
                "source": "synthetic",
                "folder": f"{folder}/data",
                "synthetic": made,
                "split": {"valid": 0.0, "test": 0.0},
            },
            "tables": {"item": {"dims": shape["dims"], "live": shape["live"], "chunk_width": shape["chunk_width"]}},
            "model": {"row_norm": "unit"},
            "sparsity": {"start": "random", "schedule": {"kind": "static"}},
            "train": {"batch_size": shape["users"], "negatives": negatives, "warm_accumulator": 1.0},
            "cluster": {"workers": 0},
        },
        "of the benchmark",
    )


def _stream(prepared: Prepared, config: Config) -> HistoryStream:
    """From the beginning of the first epoch."""
    size = config.train.batch_size
    return HistoryStream(prepared, config.data.stream, batch_size=size, seed=0, rank=0, ranks=1)


def _distinct(stream: HistoryStream) -> int:
    """Items of the first batch."""
    with closing(stream.read(1, lambda block, _: len(np.unique(block.rows)))) as counts:
        return next(counts)[0]


def _trainer(config: Config, shape: dict[str, int], ranks: Ranks) -> Trainer:
    sizes = shape["rows"], shape["dims"], shape["live"], shape["chunk_width"]
    table = packed_table(*sizes, ranks, config.train)
    steps = shape["repeats"] * (shape["steps"] + WARM_STEPS)
    transport = GroupTransport(ranks, lambda: SparsityServer(config.sparsity, steps, ranks.size))
    return Trainer(config, table, transport, ranks, steps)


def _train(trainer: Trainer, stream: HistoryStream, waiting: Waiting) -> Iterator[tuple[int, int]]:
    """Take the steps of an epoch; their sizes, and their times in `waiting`, but for the first ones."""
    with closing(_batches(trainer, stream)) as batches:
        step = 0
        while True:
            began = time.perf_counter()
            batch, following = next(batches, (None, None))
            if batch is None:
                return
            came = time.perf_counter()
            step += 1
            trainer.step(batch, step, following)
            if step > WARM_STEPS:
                waiting.add(came - began, time.perf_counter() - came)
            yield len(batch.offsets) - 1, len(batch.positions)


def _thread(trainer: Trainer, stream: HistoryStream) -> Iterator[tuple[int, int]]:
    for batch, _ in _batches(trainer, stream):
        yield len(batch.offsets) - 1, len(batch.positions)


def _batches(trainer: Trainer, stream: HistoryStream) -> Generator[tuple[Batch, Batch | None]]:
    return stream.read(1, lambda block, place: trainer.batch(block, place + 1))


def _size(block: HistoryBlock, _: int) -> tuple[int, int]:
    return len(block), len(block.rows)


def _report(shares: list[float], found: dict[str, Rates], shape: dict[str, int]) -> Report:
    histories = {name: spread(rates.histories) for name, rates in found.items()}
    interactions = {name: spread(rates.interactions) for name, rates in found.items()}
    share = spread(shares)
    notes = [f"the first {WARM_STEPS} steps of an epoch do not count for the share: before them windows are opened"]
    if share["median"] > MOST_WAITING:
        notes.append(f"steps wait {100 * share['median']:.1f} % of the time; the target is {100 * MOST_WAITING:g} %")
    return Report(
        kind="stream",
        figures={
            "wait_share": share["median"],
            "histories_per_second": histories["thread"]["median"],
            "interactions_per_second": interactions["thread"]["median"],
        },
        rows=[
            {
                "what": text,
                "histories/s": histories[name],
                "interactions/s": interactions[name],
                "waiting, %": {key: 100 * value for key, value in share.items()} if name == "training" else None,
            }
            for name, text in NAMES.items()
        ],
        shape={**shape, "device": "cpu"},
        notes=notes,
        chart=Chart(
            title="Histories from disk to the step",
            y_label="histories a second, the median (log)",
            x_label="",
            series={"histories a second": [histories[name]["median"] for name in NAMES]},
            x=list(NAMES.values()),
            kind="bars",
            log_y=True,
        ),
    )
