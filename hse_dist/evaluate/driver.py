"""The evaluation job: the best checkpoint of a run, or a baseline, on held-out users.

In: a configuration. Out: metrics and sizes, also as files in the run folder (`evaluation/SPLIT.json`, and the metrics
of each user as Parquet, so that two runs can be compared by a paired bootstrap).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hse_dist.checkpoint.reading import fitting
from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.cluster import connect, run_workers
from hse_dist.config import Config
from hse_dist.data.feature_rows import FeatureRows
from hse_dist.data.made_with import open_prepared
from hse_dist.data.prepared import Prepared
from hse_dist.errors import RunFolderError
from hse_dist.evaluate.metrics import write_users
from hse_dist.evaluate.ranking import rank_users
from hse_dist.files import write_json
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.model.parameters import DenseParameters
from hse_dist.progress import Meter, telling
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.sparsity.start import open_start
from hse_dist.sparsity.tables import make_table
from hse_dist.tables.sharded import DenseTable, PackedTable

VALUE_BYTES, COLUMN_BYTES = 4, 4
"""A live entry is a float32 value and a column number; of a block of columns all entries share one number."""


def evaluate(config: Config, split: str = "test") -> dict[str, Any]:
    """Metrics of the run's best checkpoint on `split`.

    Raises:
        HseError: there is no such run, its data are others or gone, or workers failed.
    """
    check_run(config)
    began = time.perf_counter()
    with connect(config.cluster), telling("evaluate", RunFolder(config).progress / "evaluate", "users") as meter:
        answer = run_workers(evaluate_worker, {"config": config, "split": split, "meter": meter}, config, "evaluate")
    return {**answer, "seconds": time.perf_counter() - began}


def check_run(config: Config) -> None:
    """Check that there is a run of this configuration, and that the prepared folder holds the data of that run.

    Raises:
        RunFolderError: there is no run, or it was made with other settings or of other data.
        DataError: the prepared folder is missing, or was made with other settings.
    """
    folder = RunFolder(config)
    folder.check()
    folder.check_data(open_prepared(config))


def evaluate_worker(ranks: Ranks, arguments: dict[str, Any]) -> dict[str, Any]:
    """One rank of the job."""
    config: Config = arguments["config"]
    split = arguments["split"]
    prepared = Prepared(config.data.folder)
    run = open_best(config, prepared, ranks)
    meter = Meter(arguments["meter"] if ranks.rank == 0 else "")
    metrics = rank_users(run.table, run.model, prepared, split, config.evaluate, ranks, meter, run.features)
    answer = {
        "split": split,
        "step": run.step,
        "seed": config.data.split.seed,
        **metrics.result(),
        **sizes(run.table, run.features),
    }
    if ranks.rank == 0:
        folder = Path(config.run.folder) / "evaluation"
        write_users(folder / f"{split}-users.parquet", metrics.per_user())
        write_json(folder / f"{split}.json", answer)
    return answer


@dataclass(frozen=True)
class Opened:
    """A run's best checkpoint: its table, its model, the rows of features if it has any, and its step."""

    table: PackedTable | DenseTable
    model: Autoencoder
    features: FeatureRows | None
    step: int


def open_best(config: Config, prepared: Prepared, ranks: Ranks) -> Opened:
    """The run's best checkpoint; a collective call.

    Raises:
        RunFolderError: the run has no checkpoint.
    """
    folder = RunFolder(config)
    store = CheckpointStore.of(config)
    best = store.open_best(ranks)
    if best is None:
        raise RunFolderError(
            f"The run in {folder.path} has no checkpoint.",
            cause="Train first.",
            setting="run.folder",
            value=config.run.folder,
        )
    start = open_start(config, folder.start) if config.tables.item.kind == "packed" else None
    features = FeatureRows.of(prepared, config.tables.features) if config.tables.features else None
    parameters = DenseParameters.of(config, features.names if features else ())
    with fitting(best):
        shared = store.load_shared(best)
        table = make_table(config, features.rows if features else prepared.items, start, ranks, shared)
        parameters.load_arrays(shared)
    store.load(best, table.state_dict())
    table.check_loaded()
    return Opened(table, Autoencoder(config.model, parameters.to(ranks.device)), features, best.step)


def sizes(table: PackedTable | DenseTable, features: FeatureRows | None = None) -> dict[str, Any]:
    """Live entries, slots and bytes, an item's share of those of features included; a collective call."""
    live, items = table.live_entries(), features.items if features else table.rows
    if isinstance(table, DenseTable):
        return {"live_entries": live, "slots_per_live": 1.0, "bytes_per_item": 4.0 * table.dims}
    return {
        "live_entries": live,
        "slots_per_live": table.layout.slots / live,
        "bytes_per_item": (VALUE_BYTES + COLUMN_BYTES / table.block) * live / items,
    }
