"""One cell of the matrix, from prepared data to metrics.

In: a cell. Out: what became of it, JSON-able: metrics, bytes and seconds, or the error. The metrics of each user lie in
a file beside. Packed rows go the way of the jobs `train` and `evaluate`, in this process and without Ray, and a cell
that learns from another run makes that one first, where it is missing; baselines go through their registry, and share
factorizations by a folder.
"""

from __future__ import annotations

import shutil
import time
import traceback
from pathlib import Path
from typing import Any

from hse_dist.benchmark.quality.store import DONE, FAILED, Cell, Store
from hse_dist.config import Config
from hse_dist.errors import HseError, PreemptedError

KEPT = ("ndcg@100", "recall@20", "recall@50", "coverage", "users", "thirds", "bytes_per_item", "live_entries",
        "slots_per_live")  # fmt: skip
"""What every result has."""
BASELINE, TRAINING = ("chosen", "validation"), ("start_valid", "best_valid", "best_step", "steps")
"""What results of one side have beside that: how the method was chosen, and what training added."""


def compute(folder: Path, cell: Cell) -> dict[str, Any]:
    """What became of the cell: `state`, `seconds`, and `result`, or `error` with `traceback` where it is a bug."""
    began = time.perf_counter()
    try:
        result = _ours(Store(folder), cell) if cell.config is not None else _baseline(Store(folder), cell)
    except HseError as error:
        return {"state": FAILED, "error": str(error), "seconds": time.perf_counter() - began}
    except Exception as error:
        what = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        return {"state": FAILED, **what, "seconds": time.perf_counter() - began}
    return {"state": DONE, "result": result, "seconds": time.perf_counter() - began}


def _ours(store: Store, cell: Cell) -> dict[str, Any]:
    from hse_dist.evaluate.driver import evaluate
    from hse_dist.train.driver import train

    assert cell.config is not None
    folder = store.run(cell)
    config = _in_folder(cell.config, folder)
    try:
        if cell.teacher is not None:
            teacher = store.teacher(cell).absolute()  # what a run goes on with is this path, from wherever
            with store.lock(teacher.name, wait=True):
                train(_in_folder(cell.teacher, teacher))
            config = config.model_copy(update={"train": config.train.model_copy(update={"teacher": str(teacher)})})
        summary = train(config)
        metrics = evaluate(config, "test")
        store.users(cell).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / "evaluation" / "test-users.parquet", store.users(cell))
    except PreemptedError:
        raise SystemExit(PreemptedError.exit_code) from None  # ends this process, and the next try goes on
    except Exception:
        # another try begins anew; only what was interrupted goes on
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)
    return {**{key: metrics[key] for key in KEPT}, **{key: summary[key] for key in TRAINING}}


def _in_folder(config: Config, folder: Path) -> Config:
    """The configuration of a run in another folder."""
    return config.model_copy(update={"run": config.run.model_copy(update={"folder": str(folder)})})


def _baseline(store: Store, cell: Cell) -> dict[str, Any]:
    from hse_dist.baselines.factors import Factors
    from hse_dist.baselines.registry import evaluate_baseline
    from hse_dist.data.prepared import Prepared
    from hse_dist.evaluate.metrics import write_users

    prepared = Prepared(cell.prepared)
    metrics, users = evaluate_baseline(
        cell.method,
        prepared,
        "test",
        bytes_per_item=cell.budget,
        seed=cell.seed,
        factors=Factors(prepared, folder=store.factors(cell)),
    )
    write_users(store.users(cell), users)
    return {key: metrics[key] for key in (*KEPT, *BASELINE)}
