"""What an export's answers are worth to held-out users, and the bytes that it takes an item.

In: a configuration, whose prepared data have the users, and an export of the items of these data. Out: the metrics of
the job `evaluate`, also as files beside those of the run (`evaluation/SPLIT-export.json`, and the metrics of each user
as Parquet, so that `compare` takes them; of an export that is not the run's own, `SPLIT-export-NAME`, by its folder's
name).

Why once more: `evaluate` ranks by the numbers of the checkpoint. Here `Recommender` answers, as it does where the
export is served, by the numbers that were written: halves where `export.values` says so. It needs no Ray.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hse_dist.config import Config
from hse_dist.data.made_with import open_prepared
from hse_dist.data.popularity import thirds
from hse_dist.data.prepared import Prepared
from hse_dist.errors import ExportError
from hse_dist.evaluate.metrics import DEPTH, Metrics, write_users
from hse_dist.export.format import Export, item_files, load_export
from hse_dist.export.ids import as_array
from hse_dist.export.mapped import ORDER, TABLE
from hse_dist.export.recommender import Recommender
from hse_dist.export.tables import ITEMS, NPZ
from hse_dist.files import write_json
from hse_dist.progress import Meter, telling
from hse_dist.run_folder import RunFolder


def evaluate_export(config: Config, split: str = "test", folder: str | None = None) -> dict[str, Any]:
    """Metrics of an export's answers to the held-out users of `split`.

    Args:
        folder: of the export; None: the run's own.

    Returns:
        The metrics of `evaluate`, and `export` (its folder), `format`, `value_type`, `live_entries`,
        `stored_bytes_per_item` (see `stored_bytes`) and `seconds`.

    Raises:
        DataError: the prepared folder is missing, or was made with other settings.
        RunFolderError: the run is of other data; or its own export is asked for, and it is not there or of other
            settings.
        ExportError: there is no export, it is damaged, has other items than the data, or features of users.
    """
    began = time.perf_counter()
    prepared, run = open_prepared(config), RunFolder(config)
    if folder is None:
        run.check()
    if run.started:
        # what is written lies beside the metrics of the run, to be compared user by user
        run.check_data(prepared)
    place = Path(folder or run.export).absolute()
    export = load_export(place)
    _check(export, place, prepared)
    with telling("evaluate", run.progress / "evaluate-export", "users") as path:
        metrics = rank(Recommender(export), prepared, split, config.evaluate.users, Meter(path))
    answer = {
        "export": str(place),
        "split": split,
        "seed": config.data.split.seed,
        **metrics.result(),
        **{name: export.manifest[name] for name in ("format", "value_type", "live_entries")},
        "stored_bytes_per_item": stored_bytes(export, place) / len(export.item_ids),
    }
    own = place.resolve() == run.export.resolve()
    stem = f"{split}-export" if own else f"{split}-export-{place.name}"
    write_users(run.path / "evaluation" / f"{stem}-users.parquet", metrics.per_user())
    write_json(run.path / "evaluation" / f"{stem}.json", answer)
    return {**answer, "seconds": time.perf_counter() - began}


def _check(export: Export, place: Path, prepared: Prepared) -> None:
    """Raises ExportError: the export has other items than the data, or features of users."""
    if not export.item_ids.equals(prepared.item_ids()):
        raise ExportError(
            f"The export {place} has other items than the prepared histories, or in another order.",
            cause="Name the data that its run was trained on.",
            setting="data.folder",
            value=str(prepared.folder),
        )
    if export.features is not None:
        raise ExportError(
            f"The export {place} has features of users, with which an export is not evaluated yet.",
            cause="Leave out --export: the run is evaluated with them.",
        )


def rank(
    recommender: Recommender, prepared: Prepared, split: str, users: int = 512, meter: Meter | None = None
) -> Metrics:
    """Metrics of the answers to the held-out users of `split`, 100 deep, items of their inputs left out.

    Args:
        recommender: of an export whose items are those of `prepared`, in their order.
        users: asked for at a time.
        meter: is told how many users there were.

    Raises:
        DataError: a held-out user has no target.
    """
    metrics, ids = Metrics(thirds(prepared.counts())), prepared.item_ids()
    first, every = 0, prepared.users(split)
    for block in prepared.scan(split, ("rows", "target"), users):
        histories = pa.LargeListArray.from_arrays(block.offsets, ids.take(pa.array(block.rows))).to_pylist()
        lists = [answer.items for answer in recommender.recommend_batch(histories, DEPTH)]
        top = np.full((len(block), DEPTH), -1, np.int64)
        lengths = np.array([len(items) for items in lists])
        found = as_array([item for items in lists for item in items], ids.type)
        top[np.arange(DEPTH) < lengths[:, None]] = recommender.rows_of(found)
        targets = block.targets()
        metrics.add(top, targets.offsets, targets.rows, first + np.arange(len(block)))
        first += len(block)
        if meter is not None:
            meter(first / every, first)
    return metrics


def stored_bytes(export: Export, folder: Path) -> int:
    """Bytes on disk of what answers: the whole files, headers too, that hold values, columns or codes, lengths or
    offsets, gains and an index.

    Left out are the items' ids (their column, or their array) and the order of these, the manifest, and `items.npz`,
    the second copy that the format `parquet` has for SciPy.
    """
    sizes = {name: export.manifest["files"][name]["bytes"] for name in item_files(export.manifest)}
    whole = sum(size for name, size in sizes.items() if name not in (NPZ, ORDER))
    if TABLE in sizes:
        return whole - export.item_ids.nbytes
    with pq.ParquetFile(folder / ITEMS) as file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        column = file.schema_arrow.names.index("item")  # the first of its columns: none before it is a list
        return whole - sum(group.column(column).total_compressed_size for group in groups)
