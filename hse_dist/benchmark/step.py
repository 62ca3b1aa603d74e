"""`benchmark step`: one training step on packed rows beside dense TorchRec tables, in one process.

In: a shape. Out: milliseconds of forward + backward + fused update for packed rows, a dense table of the same D, and a
dense table of the same bytes, all with the same batch, model and cheap loss. The three take turns, so that a machine
whose speed drifts is fair to all. The dense table of D columns has only as many rows as fit into memory: its time does
not depend on the number of rows that are not looked up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import torch

from hse_dist.benchmark.report import Chart, Report, spread
from hse_dist.cluster import prepare_process, usable_device
from hse_dist.config import ClusterSettings, ModelSettings, TrainSettings, WireSettings
from hse_dist.config.contradictions import MOST_DENSE_ON_GPU
from hse_dist.data.batch import Batch
from hse_dist.errors import ConfigError
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.ranks import Ranks, free_address, process_group
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.sharded import DenseTable, OwnedRows, PackedTable

LEAST_SPEEDUP, MOST_AGAINST_BYTES = 20.0, 1.3
"""Targets: against dense rows of equal D, and of equal bytes."""
DENSE_BYTES = 4 * 2**30
"""Most memory for the values of a dense table."""


def benchmark_step(
    *,
    candidates: int = 8192,
    live: int = 32,
    dims: int = 4096,
    users: int = 512,
    history: int = 60,
    rows: int = 200_000,
    chunk_width: int = 32,
    block: str = "1",
    repeats: int = 7,
    threads: int | None = None,
    device: str = "cpu",
) -> Report:
    """Medians of `repeats` steps.

    Args:
        candidates: C, rows looked up a step. live: k, live entries a row. dims: D. users: B. history: mean items a
            user. rows: of the table. chunk_width: w, slots a chunk of the packed table. block: b, adjacent columns
            that are live together under one number.

    Returns:
        figures `speedup_vs_dense_equal_dim` and `time_vs_dense_equal_bytes`; a row a table, in milliseconds.

    Raises:
        ResourceError: there is no such device here.
        ConfigError: it does not train dense rows of so many columns; or blocks do not fit the rows.
    """
    where, b = usable_device(device), int(block)
    if live % b or dims % b or chunk_width % b:
        raise ConfigError(f"Blocks of {b} do not divide --live {live}, --dims {dims} and --chunk-width {chunk_width}.")
    same_bytes = live * (b + 1) // b // 4 * 4
    if where.type == "cuda" and dims > MOST_DENSE_ON_GPU:
        raise ConfigError(
            f"The GPU kernels train dense rows of {MOST_DENSE_ON_GPU} columns at most, so there is nothing to measure "
            f"packed rows of {dims} beside (option --dims)."
        )
    threads = threads or os.cpu_count() or 1
    prepare_process(ClusterSettings(cpus_per_worker=threads))
    shape = {"candidates": candidates, "live": live, "dims": dims, "users": users, "history": history, "rows": rows}
    shape |= {"chunk_width": chunk_width, "block": b, "repeats": repeats, "threads": threads}
    with process_group(0, 1, free_address(), where, 600.0) as ranks:
        batch = make_batch(candidates, users, history, rows, ranks.device)
        settings = TrainSettings(learning_rate=0.01, warm_accumulator=1.0)
        steps = {
            "packed": step_of(packed_table(rows, dims, live, chunk_width, ranks, settings, block=b), batch),
            "dense_equal_dim": dense_step(rows, dims, batch, ranks, settings),
            "dense_equal_bytes": dense_step(rows, same_bytes, batch, ranks, settings),
        }
        times = _take_turns(steps, repeats, ranks.device)
    return _report(times, {**shape, "device": device}, same_bytes)


def _report(times: dict[str, list[float]], shape: dict[str, int | str], same_bytes: int) -> Report:
    milliseconds = {name: spread(values) for name, values in times.items()}
    median = {name: values["median"] for name, values in milliseconds.items()}
    speedup, against = median["dense_equal_dim"] / median["packed"], median["packed"] / median["dense_equal_bytes"]
    notes = []
    if speedup < LEAST_SPEEDUP:
        notes.append(f"{speedup:.1f} times faster than dense rows of equal D; the target is {LEAST_SPEEDUP:g}")
    if against > MOST_AGAINST_BYTES:
        notes.append(f"{against:.2f} times the time of dense rows of equal bytes; the target is {MOST_AGAINST_BYTES:g}")
    names = {
        "packed": "packed" if shape["block"] == 1 else f"packed, blocks of {shape['block']}",
        "dense_equal_dim": f"dense, D = {shape['dims']}",
        "dense_equal_bytes": f"dense, D = {same_bytes} (same bytes)",
    }
    return Report(
        kind="step",
        figures={"speedup_vs_dense_equal_dim": speedup, "time_vs_dense_equal_bytes": against},
        rows=[
            {"table": name, "milliseconds": milliseconds[key], "times packed": median[key] / median["packed"]}
            for key, name in names.items()
        ],
        shape=dict(shape),
        notes=notes,
        chart=Chart(
            title="One training step: forward, backward and update",
            y_label="milliseconds, the median (log)",
            x_label="",
            series={"milliseconds": [median[key] for key in names]},
            x=list(names.values()),
            kind="bars",
            log_y=True,
        ),
    )


def make_batch(candidates: int, users: int, history: int, rows: int, device: torch.device, seed: int = 0) -> Batch:
    """Histories of geometric length (at least 1) over the candidates, which are spread over the table; lengths are the
    same whatever the seed."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(1.0 / history, users), candidates)
    rng = np.random.default_rng(seed) if seed else rng
    positions = [rng.choice(candidates, n, replace=False) for n in lengths]
    chosen = np.sort(rng.choice(rows, candidates, replace=False))
    parts = (chosen, np.concatenate([[0], np.cumsum(lengths)]), np.concatenate(positions))
    tensors = [torch.from_numpy(part.astype(np.int64)).to(device) for part in parts]
    return Batch(tensors[0], tensors[1], tensors[2])


def packed_table(
    rows: int,
    dims: int,
    live: int,
    chunk_width: int,
    ranks: Ranks,
    settings: TrainSettings,
    wire: WireSettings | None = None,
    block: int = 1,
) -> PackedTable:
    """A table of `live` random entries a row, in whole blocks of adjacent columns."""
    layout = RowLayout.from_lengths(np.full(rows, live), chunk_width)
    table = PackedTable(layout, dims, ranks, settings, "row_wise", with_gains=False, wire=wire, block=block)
    first, last = table.row_ranges[ranks.rank]
    free, numbers = dims // block, live // block
    offsets = (layout.offsets[first : last + 1].numpy() - int(layout.offsets[first])) * (layout.width // block)
    rng = np.random.default_rng(1)
    columns = np.full(offsets[-1], free, dtype=np.int64)
    places = (offsets[:-1, None] + np.arange(numbers)).ravel()
    # distinct within a row: one random number in each of as many strips
    strip = free // numbers
    columns[places] = (rng.integers(0, strip, (last - first, numbers)) + np.arange(numbers) * strip).ravel()
    values = np.zeros((offsets[-1], block), dtype=np.float32)
    values[places] = rng.standard_normal((len(places), block), dtype=np.float32)
    table.put_back(OwnedRows(first, last, offsets, values.ravel(), columns, free, block))
    return table


def dense_step(rows: int, dims: int, batch: Batch, ranks: Ranks, settings: TrainSettings) -> Callable[[], None]:
    """A step of a dense table, on as many candidates as `batch` has, spread over the rows that fit."""
    rows = max(len(batch.candidates), min(rows, DENSE_BYTES // (4 * dims)))
    table = DenseTable(rows, dims, ranks, settings, "row_wise")
    table.local_values().normal_()
    spread = torch.linspace(0, rows - 1, len(batch.candidates), device=batch.candidates.device).long()
    return step_of(table, Batch(spread, batch.offsets, batch.positions))


def step_of(table: PackedTable | DenseTable, batch: Batch) -> Callable[[], None]:
    """Forward, backward and fused update of one batch."""
    model = Autoencoder(ModelSettings(row_norm="unit"))

    def step() -> None:
        loss, _ = model.loss(table.lookup(batch.candidates), batch, None)
        loss.backward()

    return step


def _take_turns(steps: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of every step, after two rounds of warming up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 2):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: values[2:] for name, values in times.items()}
