"""From a raw log to a prepared folder.

In: `config.data`. Out: `vocabulary.parquet`, `histories/split=…/bucket=…/part.parquet` and `manifest.json`, which
appear together by one rename. With `data.extendable` the interactions are there, too, and another preparation may begin
with them and read new files alone (`extend.py`). Four rounds of independent tasks, each over files that the round
before wrote:

1. spill: fragments of the log → interactions sorted by range of the user hash;
2. group: ranges → histories without duplicates, item counts;                (then: items with enough users)
3. count: ranges → users with enough items, splits, counts of training users; (then: the vocabulary)
4. write: buckets → Parquet.

Tables of features (`features.py`) have rounds of their own between these, and round 4 puts their lists beside the
histories. With `data.admission_mb` a round before them finds the items that may have enough users (`admission.py`), and
the others are passed over: in spills, or where interactions are kept for an extension, once a part is grouped.

A task takes at most `data.memory_mb`, and says what it took; the driver holds arrays of the size of the catalogue. What
is written follows from the set of interactions and the settings, not from tasks, memory or the order of files.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hse_dist.config import Config, DataSettings
from hse_dist.data import catalog, synthetic
from hse_dist.data.admission import admit
from hse_dist.data.extend import Extended, refuse_features, write_ledger
from hse_dist.data.features import FeatureRounds
from hse_dist.data.generations import Generations
from hse_dist.data.made_with import content_settings, is_prepared
from hse_dist.data.manifest import SPLITS, VERSION
from hse_dist.data.rounds import (
    ADMITTED,
    PartTask,
    count_part,
    group_part,
    spill_fragment,
    writable,
    write_bucket,
)
from hse_dist.data.schema import Fragment, LogSchema, plan
from hse_dist.data.shuffle import SpillTask, count_parts
from hse_dist.data.source import LogFile, find_files
from hse_dist.data.task_memory import Cost
from hse_dist.data.vocabulary import assign_rows, item_counts, merge_counts, write_ids, write_vocabulary
from hse_dist.errors import DataError
from hse_dist.files import new_folder, write_json
from hse_dist.progress import Progress
from hse_dist.tasks import map_tasks, ray_is_running

STAGES = {"spill": 0.35, "group": 0.42, "count": 0.08, "write": 0.15}
"""Share of time that each round takes (measured: 20 million integer interactions, two tasks)."""
MADE_UP = {"synthetic log": 0.4}
"""The same of the round before them that makes a log up, beside their sum of 1."""
ADMISSION = {"admission": 0.8}
"""The same of the round that counts items by a sketch (measured: 5 million interactions, 2.6 million items)."""

log = logging.getLogger(__name__)


def prepare(config: Config, *, extend: str | Path | None = None, files: list[LogFile] | None = None) -> dict[str, Any]:
    """Prepare the log of `config.data` into `config.data.folder`.

    Args:
        extend: another prepared folder, of which new files of the log make this one; it stays as it is.
        files: those of the log that are to be read, or that are new; None: all that are there.

    Returns:
        folder, users (by split), items, interactions, left_out (held-out users of one item), read (interactions read,
        after `min_rating`), counted_items (distinct ones whose users were counted exactly), seconds and
        interactions_per_second (of those read), core_seconds (of the driver and all tasks), task_memory_mb (the largest
        peak of a task, MiB; None where the system does not tell); of an extension also new_files, new_items and
        evicted_rows (those that no new item has taken); with features their summaries by name
        (`feature_report.summary`).

    Raises:
        DataError: the log cannot be used (see `source`, `schema`, `reader`), nothing is left of it, or the folder
            cannot be written or holds something else; nothing of it is new.
    """
    started, began = time.perf_counter(), time.process_time()
    settings = config.data
    folder = Path(settings.folder).absolute()
    if not is_prepared(config) and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} exists and is not a prepared folder.",
            cause="It would be replaced: choose another one.",
            setting="data.folder",
            value=settings.folder,
        )
    base = None if extend is None else _base(Path(extend), folder, settings)
    with writable(settings), new_folder(folder) as temporary:
        work = temporary / "work"
        work.mkdir()
        preparation = _Preparation(settings, temporary, work, base, files)
        manifest, read = preparation.run()
        shutil.rmtree(work)
        write_json(temporary / "manifest.json", manifest)
    seconds = time.perf_counter() - started
    core_seconds = time.process_time() - began
    if ray_is_running():  # else the tasks' time is this process's already
        core_seconds += sum(cost.core_seconds for costs in preparation.costs.values() for cost in costs)
    peak = preparation.report(read, seconds)
    return {
        "folder": settings.folder,
        **{key: manifest[key] for key in ("users", "items", "interactions", "left_out")},
        "read": read,
        "counted_items": preparation.counted,
        "seconds": round(seconds, 3),
        "interactions_per_second": round(read / seconds),
        "core_seconds": round(core_seconds, 3),
        "task_memory_mb": peak,
        **preparation.added(),
    }


def _base(extend: Path, folder: Path, settings: DataSettings) -> Extended:
    """What is to be extended."""
    refuse_features(settings)
    if extend.absolute() == folder:
        raise DataError(
            f"{extend} cannot be extended in its own place: who reads it now would find other files.",
            cause="Choose another folder for the extension.",
            setting="data.folder",
            value=settings.folder,
        )
    base = Extended(extend)
    base.check(content_settings(settings))
    return base


class _Preparation:
    """The four rounds, from the driver's side."""

    def __init__(
        self,
        settings: DataSettings,
        folder: Path,
        work: Path,
        base: Extended | None = None,
        files: list[LogFile] | None = None,
    ) -> None:
        self.settings, self.folder, self.work, self.base = settings, folder, work, base
        self.files, self.fragments = files, list[Fragment]()
        self.generations = Generations.first(0)
        before = {**(MADE_UP if settings.synthetic is not None else {}), **(ADMISSION if settings.admission_mb else {})}
        self.progress = Progress(work / "progress", {**before, **STAGES, **FeatureRounds.stages(settings)})
        self.costs: dict[str, list[Cost]] = {}
        self.features = FeatureRounds(settings, folder, work, self.progress, self.costs)
        self.schema: LogSchema
        self.spills: tuple[str, ...] = ()
        self.rows = np.zeros(0, np.int64)
        self.parts = self.items = self.counted = 0
        self.told: dict[str, Any] = {}

    def run(self) -> tuple[dict[str, Any], int]:
        """(manifest, interactions read)"""
        read = self._spill()
        each = [(part,) for part in range(self.parts)]
        self._map(group_part, each, "group", self.spills)
        if self.settings.extendable:
            before = {} if self.base is None else self.base.files
            write_ledger(self.folder, self.files or [], before, self.fragments)
        shutil.rmtree(self.work / "spills")
        self.features.group(self.parts)
        items = self._merge_items()
        counted = self._map(count_part, each, "count")
        users = {split: sum(counts[index] for counts in counted) for index, split in enumerate(SPLITS)}
        self._check_users(users)
        self._write_vocabulary(items)
        features = self.features.count([counts[0] for counts in counted])
        per_bucket = self.parts // self.settings.buckets
        buckets = [tuple(range(b * per_bucket, (b + 1) * per_bucket)) for b in range(self.settings.buckets)]
        written = self._map(write_bucket, buckets, "write")
        having = sum((found["having"] for found in written), Counter[str]())
        self.told = self.features.summaries(features, having, users["train"])
        files = {split: [found[split] for found in written if split in found] for split in SPLITS}
        interactions = {split: sum(file["interactions"] for file in files[split]) for split in SPLITS}
        manifest = {
            "version": VERSION,
            "items": self.items,
            "users": users,
            "left_out": sum(counts[len(SPLITS)] for counts in counted),
            "interactions": sum(interactions.values()),
            "interactions_by_split": interactions,
            "files": files,
            "features": features,
            "settings": content_settings(self.settings),
        }
        if self.base is not None:
            manifest["lineage"] = self.base.lineage
        return manifest, read

    def added(self) -> dict[str, Any]:
        """What there is to say of features, or what an extension has beyond the folder that it extends."""
        if self.base is None:
            return {"features": self.told} if self.told else {}
        version, evicted = len(self.base.lineage), self.generations.evicted
        new = int(((self.generations.since == version) & ~evicted).sum())
        return {"new_files": len(self.files or ()), "new_items": new, "evicted_rows": int(evicted.sum())}

    def report(self, read: int, seconds: float) -> float | None:
        """Log the totals; the largest peak of a task in MiB, with a warning where it was more than the setting."""
        log.info("prepare: %s interactions in %.1f s, %s a second", f"{read:,}", seconds, f"{read / seconds:,.0f}")
        known = {stage: [cost.peak for cost in costs if cost.peak is not None] for stage, costs in self.costs.items()}
        peaks = {stage: round(max(found) / 2**20, 1) for stage, found in known.items() if found}
        if not peaks:
            return None
        stage, limit = max(peaks, key=lambda name: peaks[name]), self.settings.memory_mb
        if peaks[stage] <= limit:
            log.info("prepare: no task took more than %.0f MiB (data.memory_mb = %d)", peaks[stage], limit)
        else:
            log.warning(
                "prepare: a %s task took %.0f MiB, more than data.memory_mb = %d. One user's interactions, one page of "
                "a Parquet file and one line of text cannot be divided.",
                stage,
                peaks[stage],
                limit,
            )
        return peaks[stage]

    def _spill(self) -> int:
        settings, fragments, spills = self.settings, self._fragments(), self.work / "spills"
        needed = self.features.plan(self.files or [], self.schema)
        self.parts = max(needed, count_parts(fragments, self.schema, settings))
        spills.mkdir()
        log.info("prepare: %d fragments of the log into %d parts", len(fragments), self.parts)
        known, admitted = None, ""
        if settings.admission_mb is not None:
            path = self.work / ADMITTED
            known, self.costs["admission"] = admit(fragments, self.schema, settings, path, self.progress)
            admitted = "" if settings.extendable else str(path)  # what is kept for an extension is of all items
        with self.progress.stage("spill", [fragment.rows for fragment in fragments]) as meter:
            tasks = [
                SpillTask(index, fragment, self.schema, settings, self.parts, str(spills), meter(index), admitted)
                for index, fragment in enumerate(fragments)
            ]
            results = map_tasks(spill_fragment, tasks, at_a_time=settings.tasks, label="prepare spill")
        self.costs["spill"] = [cost for _, cost in results]
        self.rows = sum((spilt.rows for spilt, _ in results), np.zeros(self.parts, np.int64))
        read = int(self.rows.sum()) if known is None else known
        if not read:
            least = settings.min_rating
            cause = f"data.min_rating = {least} leaves nothing of it." if least is not None else ""
            raise DataError("The log has no interactions.", cause=cause, setting="data.source", value=settings.source)
        self.spills = tuple(path for spilt, _ in results for path in spilt.files)
        return read

    def _fragments(self) -> list[Fragment]:
        settings, source = self.settings, self.settings.source
        if settings.synthetic is not None:
            made = self.work / "synthetic"
            with self.progress.stage("synthetic log", [1.0] * synthetic.count_blocks(settings.synthetic)) as meter:
                costs = synthetic.write(settings.synthetic, settings.columns, made, tasks=settings.tasks, meter=meter)
            self.costs["synthetic log"] = costs
            files = find_files(str(made))
        elif source.startswith(catalog.PREFIX):
            files = find_files(str(catalog.fetch(source.removeprefix(catalog.PREFIX))))
        else:
            files = find_files(source, settings.format, settings.schemes) if self.files is None else self.files
        if self.base is None:
            self.schema, fragments = plan(files, settings)
        else:
            files = self.base.unread(files)
            self.schema, fragments = self.base.join(files, settings)
        self.files, self.fragments = files, fragments
        return fragments

    def _map(
        self,
        function: Callable[[PartTask], tuple[Any, Cost]],
        parts: Sequence[tuple[int, ...]],
        stage: str,
        spills: tuple[str, ...] = (),
    ) -> list[Any]:
        folders = str(self.work), str(self.folder)
        with self.progress.stage(stage, [float(self.rows[list(own)].sum()) for own in parts]) as meter:
            tasks = [
                PartTask(self.settings, self.schema, own, spills, *folders, meter(index))
                for index, own in enumerate(parts)
            ]
            results = map_tasks(function, tasks, at_a_time=self.settings.tasks, label=f"prepare {stage}")
        self.costs[stage] = [cost for _, cost in results]
        return [result for result, _ in results]

    def _merge_items(self) -> pa.Array:
        """Items with enough users, sorted; also written for the tasks."""
        merged = merge_counts(item_counts(f"{self.work}/part-{part:05d}") for part in range(self.parts))
        least, self.counted = self.settings.min_item_count, merged.num_rows
        kept = merged.filter(pa.array(merged.column("count").to_numpy() >= least)).column("item").combine_chunks()
        days = self.settings.evict_after_days
        if self.base is not None and days is not None:
            parts = [self.work / f"part-{part:05d}" for part in range(self.parts)]
            kept = self.base.fresh(kept, parts, days, self.work)
        if not len(kept):
            raise DataError(
                "No item has enough users."
                if self.settings.admission_mb
                else f"None of the {merged.num_rows} items has enough users.",
                setting="data.min_item_count",
                value=least,
            )
        write_ids(self.work / "items.arrow", kept)
        return kept

    def _check_users(self, users: dict[str, int]) -> None:
        if sum(users.values()) > 1 and users["train"]:
            return
        found = ", ".join(f"{count} {split}" for split, count in users.items())
        least = self.settings.min_user_count
        raise DataError(
            f"No users are left to train on and to test: {found}.",
            cause="The log has too few users, or the minimum counts leave too few.",
            setting="data.min_user_count",
            value=least,
        )

    def _write_vocabulary(self, items: pa.Array) -> None:
        train, used = np.zeros(len(items), np.int64), np.zeros(len(items), bool)
        for part in range(self.parts):
            with np.load(f"{self.work}/part-{part:05d}/counts.npz") as counts:
                known = counts["places"] >= 0
                train[counts["places"][known]] += counts["train"][known]
                used[counts["places"][known]] |= counts["used"][known]
        path = self.folder / "vocabulary.parquet"
        if self.base is None:
            rows = assign_rows(train, used)
            write_vocabulary(path, items, rows, train)
        else:
            rows, self.generations = self.base.rows(items, train, used)
            write_vocabulary(path, items, rows, train, self.generations, self.base.prepared.item_ids())
        self.items = int(used.sum()) if self.base is None else len(self.generations.since)
        np.save(self.work / "rows.npy", rows)
