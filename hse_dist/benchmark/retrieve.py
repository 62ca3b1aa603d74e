"""`benchmark retrieve`: top 100 of a million items from an export, beside dense and SciPy products.

In: a shape. Out, of many users at once: users a second of `Recommender`, which is read from an export that this
writes; of dense rows of equal bytes (D = 64 for 32 live entries) and of the same D; of a plain SciPy CSR product; and
of `Recommender` without its compiled kernels. All get the same histories, the same number of threads, and take turns.
And of one history at a time: see `single.py`.

Dense rows of D = 4 096 would be 16 GB: they are timed on a slice of the items, and that is scaled up. What SciPy does
is so slow that it gets a few of the users. The dense products take blocks of users and items that were the fastest of
those tried (128 × 16 384, of 32 and 128 × 4 096 … 1 000 000).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
import torch

from hse_dist.benchmark.report import Chart, Report, spread
from hse_dist.benchmark.single import measure_single
from hse_dist.cluster import prepare_process
from hse_dist.config import ClusterSettings
from hse_dist.export.format import RowBlock, load_export, write_export
from hse_dist.export.recommender import Recommender

SLICE_BYTES = 2**29
"""Of the dense rows of equal D that are timed."""
DENSE_USERS, DENSE_ITEMS = 128, 16_384
FEW = 8
"""Users of the slow ones."""
BLOCK_ROWS = 65_536

SINGLE_NOTE = (
    "single histories: a table made up in the likeness of a trained one; one thread, from raw ids to raw ids; dense: "
    "scores and the best of them alone, without ids"
)

Histories = tuple[np.ndarray, np.ndarray]
Rates = dict[str, list[float]]


def benchmark_retrieve(
    *,
    items: int = 1_000_000,
    users: int = 1000,
    top: int = 100,
    live: int = 32,
    dims: int = 4096,
    history: int = 60,
    repeats: int = 3,
    threads: int | None = None,
    queries: int = 400,
    single_history: int = 50,
    part: Literal["all", "single"] = "all",
) -> Report:
    """Users a second, and milliseconds of single histories.

    Args:
        items: of the export. users: asked for at once. top: items a user gets. live: k, live entries an item.
        dims: D. history: mean items a user.
        queries, single_history: histories that are asked one at a time, and their items.
        part: `single` leaves out the many users.

    Returns:
        figures `speedup_vs_dense_64`, and those beside the other baselines; `p99_milliseconds` and others of single
        histories; a row for each.
    """
    single = {"queries": queries, "history": single_history}
    latency, rows = measure_single(items=items, live=live, dims=dims, top=top, **single)
    shape = {"items": items, "top": top, "live": live, "dims": dims, "queries": queries}
    shape["single_history"] = single_history
    if part == "single":
        return Report("retrieve", dict(latency), rows, shape, [SINGLE_NOTE], _latency_chart(rows, top, items))
    many = _many(items=items, users=users, top=top, live=live, dims=dims, history=history,
                 repeats=repeats, threads=threads)  # fmt: skip
    return replace(
        many,
        figures={**many.figures, **latency},
        shape={**many.shape, **shape},
        notes=[*many.notes, SINGLE_NOTE],
        tables={"single": rows},
    )


def _many(
    *, items: int, users: int, top: int, live: int, dims: int, history: int, repeats: int, threads: int | None
) -> Report:
    threads = threads or len(os.sched_getaffinity(0))
    prepare_process(ClusterSettings(cpus_per_worker=threads))
    shape = {"items": items, "users": users, "top": top, "live": live, "dims": dims, "history": history}
    asked = make_histories(items, users, history)
    with exported(items, live, dims) as folder:
        began = time.perf_counter()
        ours = Recommender.load(folder, threads)
        loaded = time.perf_counter() - began
        ways = _ways(ours, folder, asked, shape, threads)
        found = _take_turns(ways, repeats)
    shape |= {"repeats": repeats, "threads": threads}
    return _report(*found, shape, loaded)


def make_histories(items: int, users: int, mean: int) -> Histories:
    """Offsets and rows of histories of geometric length, at least 1; popular items, the first, are more likely."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(1.0 / mean, users), items // 2)
    return np.concatenate([[0], np.cumsum(lengths)]), (items * rng.random(lengths.sum()) ** 3).astype(np.int64)


@contextmanager
def exported(items: int, live: int, dims: int) -> Iterator[str]:
    """A folder with an export of `live` random entries an item, one in each of as many strips of columns."""
    with tempfile.TemporaryDirectory() as folder:
        write_export(
            f"{folder}/export",
            _blocks(items, live, dims),
            item_ids=pa.array(np.arange(items)),
            dims=dims,
            row_norm="unit",
        )
        yield f"{folder}/export"


def _blocks(items: int, live: int, dims: int) -> Iterator[RowBlock]:
    rng, strip = np.random.default_rng(1), dims // live
    for first in range(0, items, BLOCK_ROWS):
        rows = min(BLOCK_ROWS, items - first)
        columns = rng.integers(0, strip, (rows, live)) + np.arange(live) * strip
        values = rng.standard_normal(rows * live, dtype=np.float32)
        yield RowBlock(np.arange(0, rows * live + 1, live), columns.ravel(), values, np.ones(rows, np.float32))


def _ways(
    ours: Recommender, folder: str, asked: Histories, shape: dict[str, int], threads: int
) -> dict[str, tuple[Callable[[], Any], float]]:
    """What is timed: a call, and how many users it stands for."""
    offsets, rows = asked
    users, top, items, dims = (shape[name] for name in ("users", "top", "items", "dims"))
    few = (offsets[: FEW + 1], rows[: offsets[min(FEW, users)]])
    export = load_export(folder)
    plain = Recommender(export, kernels=False)
    part = max(1, min(items, SLICE_BYTES // (4 * dims)))
    narrow, wide = 2 * shape["live"], dims
    return {
        "packed": (lambda: ours.recommend_rows(offsets, rows, top), users),
        f"dense, D = {narrow} (same bytes)": (_dense(items, narrow, users, top), users),
        f"dense, D = {narrow}, product alone": (_dense(items, narrow, DENSE_USERS, None), DENSE_USERS),
        # a slice of the items: the whole takes as many times longer
        f"dense, D = {wide} (estimated)": (_dense(part, wide, DENSE_USERS, top), DENSE_USERS * part / items),
        "packed, without kernels": (lambda: plain.recommend_rows(*few, top), min(FEW, users)),
        "SciPy CSR product": (lambda: _scipy(export.matrix, *few, top), min(FEW, users)),
    }


def _dense(items: int, dims: int, users: int, top: int | None) -> Callable[[], Any]:
    """Scores of random dense rows in blocks, and the best of each block, then of all; `top` None: scores alone."""
    generator = torch.Generator().manual_seed(0)
    table, vectors = (torch.randn(n, dims, generator=generator) for n in (items, users))

    def run() -> list[torch.Tensor]:
        found = []
        for first in range(0, users, DENSE_USERS):
            asked, best = vectors[first : first + DENSE_USERS], []
            for begin in range(0, items, DENSE_ITEMS):
                scores = asked @ table[begin : begin + DENSE_ITEMS].T
                if top is not None:
                    values, rows = scores.topk(min(top, scores.shape[1]), dim=1, sorted=False)
                    best.append((values, rows + begin))
            if top is not None:
                values, rows = (torch.cat(parts, 1) for parts in zip(*best, strict=True))
                found.append(rows.gather(1, values.topk(min(top, values.shape[1]), dim=1).indices))
        return found

    return run


def _scipy(matrix: sp.csr_matrix, offsets: np.ndarray, rows: np.ndarray, top: int) -> np.ndarray:
    """As anyone would write it: two sparse products, then the best of each line."""
    histories = sp.csr_matrix(
        (np.ones(len(rows), np.float32), rows, offsets), shape=(len(offsets) - 1, matrix.shape[0])
    )
    scores = (histories @ matrix @ matrix.T).toarray()
    best = np.argpartition(scores, -top, axis=1)[:, -top:]
    return np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1), 1)


def _take_turns(ways: dict[str, tuple[Callable[[], Any], float]], repeats: int) -> tuple[Rates, Rates]:
    """Users a second, and a second of a core's time, of each; after a first round that does not count."""
    rates: Rates = {name: [] for name in ways}
    core_rates: Rates = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, (run, users) in ways.items():
            began, core_began = time.perf_counter(), time.process_time()
            run()
            if turn:
                rates[name].append(users / (time.perf_counter() - began))
                core_rates[name].append(users / (time.process_time() - core_began))
    return rates, core_rates


def _latency_chart(rows: list[dict[str, Any]], top: int, items: int) -> Chart:
    return Chart(
        title=f"One history: top {top} of {items:,} items".replace(",", " "),
        y_label="milliseconds",
        x_label="",
        series={name: [row[f"{name}, ms"] for row in rows] for name in ("p50", "p99")},
        x=[row["way"] for row in rows],
        kind="bars",
        target=20.0,
    )


def _report(rates: Rates, core_rates: Rates, shape: dict[str, int], loaded: float) -> Report:
    found = {name: spread(values) for name, values in rates.items()}
    packed, equal, alone, wide, plain, scipy_ = (values["median"] for values in found.values())
    core = {name: spread(values)["median"] for name, values in core_rates.items()}
    core_packed, core_equal, *_ = core.values()
    part = SLICE_BYTES // (4 * shape["dims"])
    return Report(
        kind="retrieve",
        figures={
            "speedup_vs_dense_64": packed / equal,
            "speedup_vs_dense_64_by_core_time": core_packed / core_equal,
            "speedup_vs_dense_64_product_alone": packed / alone,
            "speedup_vs_dense_equal_dim": packed / wide,
            "speedup_vs_plain": packed / plain,
            "speedup_vs_scipy": packed / scipy_,
            "users_per_second": packed,
            "load_seconds": loaded,
        },
        rows=[
            {
                "rows": name,
                "users a second": values,
                "users a core second": core[name],
                "packed is faster, times": packed / values["median"],
            }
            for name, values in found.items()
        ],
        shape=dict(shape),
        notes=[
            f"dense rows of D = {shape['dims']} are estimated from {part} of the items: all would be "
            f"{4e-9 * shape['items'] * shape['dims']:.0f} GB",
            f"without kernels and with SciPy alone: {FEW} of the users",
            "the dense baselines leave out pooling the histories and taking their items out of the answer",
        ],
        chart=Chart(
            title=f"Top {shape['top']} of {shape['items']:,} items".replace(",", " "),
            y_label="users a second (log)",
            x_label="",
            series={"users a second": [values["median"] for values in found.values()]},
            x=list(found),
            kind="bars",
            log_y=True,
        ),
    )
