"""The job `repack`: the best checkpoint of a run with fewer live entries, as a run of its own.

In: a run folder and k, mean live entries a row. Out: another run folder that `evaluate`, `export` and `train` take with
`tables.item.live = k`. One global cut: every row keeps its strongest entry by |value| · √|gain|, and of all others the
strongest stay, whatever their rows (the rule of a rewire that drops by magnitude). The table then goes into the chunks
that it needs (tables/repack.py), with its accumulators. One process does it, with the memory of the whole table.
"""

from __future__ import annotations

import shutil
import time
from typing import Any

import numpy as np

from hse_dist.checkpoint.reading import fitting
from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.cluster import run_workers
from hse_dist.config import Config, parse_config
from hse_dist.errors import ConfigError, RunFolderError
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder, stored_config
from hse_dist.sparsity.selection import Query, RadixSelection, Selection, histogram
from hse_dist.sparsity.slot_keys import Block, SlotKeys, count_live
from hse_dist.sparsity.slots import free, rescale_to_unit
from hse_dist.sparsity.start import StartFolder
from hse_dist.sparsity.state import check_state
from hse_dist.sparsity.strongest import keep_strongest
from hse_dist.sparsity.tables import layout_state, make_table
from hse_dist.tables.repack import packed_layout, put_in, take_out
from hse_dist.tables.sharded import PackedTable

OF_THE_LAYOUT = "residual_"
"""Arrays of a rank that speak of chunks: what it owed of its gradients, which is forgotten."""
OF_THE_MODEL = "dense_"
"""Arrays of all ranks that speak of no row: dense parameters, as the temperature of a loss, and their accumulators."""


def repack(run: str, live: int, to: str | None = None) -> dict[str, Any]:
    """Write the run folder `to`, by default RUN-liveK.

    Raises:
        HseError: there is no such run, it has no good checkpoint, its table is dense, has rows of features, or has no
            more than k entries a row, or `to` is taken.
    """
    began = time.perf_counter()
    config = stored_config(run)
    if config.tables.item.kind == "dense":
        raise ConfigError("A dense table has no live entries to cut.", setting="tables.item.kind", value="dense")
    if config.tables.features:
        names = ", ".join(config.tables.features)
        raise ConfigError("A table with rows of features cannot be cut yet.", setting="tables.features", value=names)
    target = _smaller(config, live, to or f"{run.rstrip('/')}-live{live}")
    if RunFolder(target).path.exists():
        raise RunFolderError(f"{target.run.folder} is there already.", cause="Choose another folder with --to.")
    answer = run_workers(repack_worker, {"config": config, "target": target}, config, "repack")
    return {**answer, "seconds": time.perf_counter() - began}


def _smaller(config: Config, live: int, to: str) -> Config:
    """The configuration of the run that comes out."""
    raw = config.model_dump(mode="json")
    raw["tables"]["item"]["live"], raw["run"]["folder"], raw["checkpoint"]["folder"] = live, to, None
    return parse_config(raw, f"of {to}")


def repack_worker(ranks: Ranks, arguments: dict[str, Any]) -> dict[str, Any]:
    """The one rank of the job."""
    config: Config = arguments["config"]
    target: Config = arguments["target"]
    store, source, folder = CheckpointStore.of(config), RunFolder(config), RunFolder(target)
    best = store.open_best(ranks)
    if best is None:
        raise RunFolderError(f"The run in {source.path} has no checkpoint.", cause="Train first.")
    with fitting(best):
        layout = store.load_shared(best)
        check_state(best.facts["server"])
        table = make_table(config, len(layout["chunks_of_rows"]), StartFolder(source.start), ranks, layout)
    store.load(best, table.state_dict())
    table.check_loaded()
    assert isinstance(table, PackedTable)
    before, rows, live = table.live_entries(), table.rows, target.tables.item.live
    if live * rows >= before:
        raise ConfigError(
            f"The run in {source.path} has {before / rows:.1f} live entries a row: there is nothing to cut.",
            setting="--live",
            value=live,
        )
    chunks = table.layout.chunks
    smaller = cut_globally(table, live * rows, unit=config.model.row_norm == "unit", slack=config.tables.item.slack)
    facts = {**best.facts, "metric": None, "start_metric": None, "best": None, "worse": 0}
    facts["server"] = _server_after(best.facts["server"], best.step, live * rows, chunks, smaller.layout.chunks)
    own = [
        {name: part for name, part in one.items() if not name.startswith(OF_THE_LAYOUT)}
        for one in store.load_own(best, ranks)
    ]
    folder.claim()
    facts["run"] = folder.identity
    shutil.copy(source.data, folder.data)
    shutil.copytree(source.start, folder.start)
    written = CheckpointStore(folder.checkpoints, target.checkpoint.keep)
    shared = {name: part for name, part in layout.items() if name.startswith(OF_THE_MODEL)}
    address = written.save(smaller.state_dict(), own, facts, ranks, {**shared, **layout_state(smaller)})
    return {
        "run": str(folder.path),
        "from": str(source.path),
        "step": best.step,
        "checkpoint": address,
        "rows": rows,
        "live_before": before,
        "live_entries": smaller.live_entries(),
        "chunks_before": chunks,
        "chunks_after": smaller.layout.chunks,
    }


def _server_after(server: dict[str, Any], step: int, live: int, before: int, after: int) -> dict[str, Any]:
    """The SparsityServer's state with one more event."""
    version = server["version"] + 1
    entry = {"version": version, "step": step, "kind": "repack", "live": live}
    return {
        "version": version,
        "journal": [*server["journal"], {**entry, "chunks_before": before, "chunks_after": after}],
    }


def cut_globally(table: PackedTable, live: int, *, unit: bool, slack: float) -> PackedTable:
    """A table of the `live` strongest entries, at least one a row; a collective call. The old one is changed, too.

    Args:
        live: no more than there are, and one (a block) a row at least; of blocks as many whole ones as that has.
        unit: rows get length 1 again. slack: free slots, as a share.
    """
    owned, ranks = table.owned(), table.ranks
    keys = SlotKeys(owned, table.gains(owned.first, owned.last))
    keys.narrow(_protect)
    drop = sum(ranks.gather(count_live(owned))) - live // table.block
    keys.take(_weakest(keys, ranks, owned.first, drop), largest=False)
    for _, block in keys.blocks():
        free(block.rows, block.keys, np.zeros_like(block.keys))
    if unit:
        rescale_to_unit(owned)
    table.put_back(owned)
    layout = packed_layout(table, slack)
    return put_in(take_out(table), layout)


def _protect(block: Block) -> None:
    """Cross out the strongest entry of each row."""
    limits = np.ones(block.last - block.first, np.int64)
    keep_strongest(block.rows.offsets, block.keys, block.rows.columns, limits, largest=True, others=True)


def _weakest(keys: SlotKeys, ranks: Ranks, first_row: int, count: int) -> Selection:
    """The decision of all ranks on the `count` weakest keys, with this rank's quota: each of them makes it alike."""
    selection, answer = RadixSelection(count, largest=False), Query(0, 0)
    mine = 0
    while isinstance(answer, Query):
        counts = np.zeros(answer.bins, np.int64)
        for part in keys.parts():
            counts += histogram(part, answer)
        told = sorted(ranks.gather((first_row, ranks.rank, counts)), key=lambda one: one[:2])
        mine = [rank for _, rank, _ in told].index(ranks.rank)
        found = selection.feed(np.stack([one for _, _, one in told]))
        if isinstance(found, Selection):
            return Selection(found.threshold, (found.quotas[mine],), found.count)
        answer = found
    raise AssertionError("a selection ends with an answer")
