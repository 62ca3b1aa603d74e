"""The whole path on one data set, as a user would type it, and one table at the end.

In: a configuration. Out: the result of each command, and a table of three models: packed rows, a dense table of the
same bytes trained by the same code, and full EASE of the same histories. Each command is a process of its own and is
shown before it runs, so that the demo can be read as a recipe.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hse_dist.config import load_config
from hse_dist.data.prepared import Prepared
from hse_dist.errors import TrainingError, UserError
from hse_dist.screen import show_table

Result = dict[str, Any]

DENSE = (
    "tables.item.kind=dense",
    "sparsity.start=random",
    "model.row_norm=unit",
    "train.learning_rate=0.1",
    "train.warm_accumulator=0.0",
    "train.epochs=40",
    "train.evaluate_every=5",
)
"""What makes the configuration the dense baseline; `tables.item.dims` follows from the bytes. Of the rates 0.02 … 3
this one is best on validation, on MovieLens-100K (0.2 and 0.3 are as good)."""

HISTORY = 3
"""Items of the history that the demo asks recommendations for: the most popular ones."""


def demo(config: str, overrides: Sequence[str], folder: Path) -> Result:
    """Run every job on `config` with its folders under `folder`; the results by name.

    Raises:
        UserError, TrainingError: a command failed; its own message stands above.
    """
    began = time.perf_counter()
    common = [config, *overrides, f"data.folder={folder}/data"]
    packed = [*common, f"run.folder={folder}/packed"]
    # 8 bytes a live entry, 4 a dense dimension
    dims = 2 * load_config(config, [*overrides]).tables.item.live
    dense = [*common, f"run.folder={folder}/dense", f"tables.item.dims={dims}", *DENSE]
    results = {"prepare": _run("prepare", *common)}
    results["train"] = _run("train", *packed)
    results["evaluate"] = _run("evaluate", *packed)
    results["ease"] = _run("evaluate", *packed, "--baseline", "ease")
    results["train_dense"] = _run("train", *dense)
    results["evaluate_dense"] = _run("evaluate", *dense)
    results["export"] = _run("export", *packed)
    popular = Prepared(folder / "data").item_ids()[:HISTORY].to_pylist()
    results["recommend"] = _run("recommend", results["export"]["folder"], "--items", ",".join(map(str, popular)))
    seconds = time.perf_counter() - began
    _show(results, folder, seconds)
    return {**results, "seconds": seconds}


def _run(*words: str) -> Result:
    """One command in its own process: shown, run, its JSON line read."""
    print(f"\n$ hse-dist {shlex.join(words)}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "hse_dist.cli", *words], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        kind = UserError if done.returncode == UserError.exit_code else TrainingError
        raise kind(f"The command {words[0]} ended with exit code {done.returncode}; its message stands above.")
    line = done.stdout.splitlines()[-1]
    print(line if len(line) <= 1000 else f"{line[:1000]} …", file=sys.stderr, flush=True)
    result: Result = json.loads(line)
    return result


def _show(results: dict[str, Result], folder: Path, seconds: float) -> None:
    packed, dense, ease = results["evaluate"], results["evaluate_dense"], results["ease"]
    rows = [
        _row("packed rows", packed, results["train"]["seconds"]),
        _row("dense table, same bytes", dense, results["train_dense"]["seconds"]),
        _row("full EASE", ease, ease["seconds"]),
    ]
    train = results["train"]
    start, best, step = (train[key] for key in ("start_valid", "best_valid", "best_step"))
    if start is not None:
        print(f"\nValidation nDCG@100: {start:.3f} at the start, {best:.3f} at best (step {step}).", file=sys.stderr)
    items = results["prepare"]["items"]
    title = f"{packed['users']} held-out users, {items} items; everything in {folder}, {seconds:.0f} s"
    show_table(title, ("model", "bytes/item", "nDCG@100", "Recall@20", "Recall@50", "coverage", "seconds"), rows)


def _row(name: str, result: Result, seconds: float) -> tuple[str, ...]:
    metrics = (f"{result[key]:.3f}" for key in ("ndcg@100", "recall@20", "recall@50", "coverage"))
    return (name, f"{result['bytes_per_item']:.0f}", *metrics, f"{seconds:.0f}")
