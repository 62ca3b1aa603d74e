"""What users and items have beside interactions: values of features, as rows of a vocabulary each.

In: `data.features`, and the parts of the log. Out: the tasks' rounds for each feature, from the driver's side, and what
the manifest says of it. A feature's table is a log of (user, value), or of (item, value), so it goes through the same
rounds: spilt by the hash of the id into parts, grouped, counted. A user's part of a feature is therefore the part with
the same number of the log, and the write round puts its lists beside the histories.

    histories/…/part.parquet        feature_NAME: rows of a user's values, for each feature of users
    features/NAME/vocabulary.parquet    row, value and count: how many training users, or items, have it
    features/NAME/items.parquet         rows: of each item's values, in the order of the item rows; features of items

Users' values that stand in the log itself are grouped once the targets are known: a line whose item is hidden of its
user gives none. So its spills have the hash of the item beside each value, in the place of times.

A feature without a column is the user's id: row r is the r-th user of the training files, so it has no file.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hse_dist.config import ColumnNames, DataSettings, FeatureSettings
from hse_dist.data import catalog
from hse_dist.data.feature_report import summary, warn_of_several, without_values
from hse_dist.data.feature_rounds import (
    FeatureTask,
    count_item_values,
    count_user_values,
    group_log_values,
    write_item_lists,
)
from hse_dist.data.grouping import Part
from hse_dist.data.manifest import MOST_ITEMS
from hse_dist.data.reader import values_a_line
from hse_dist.data.rounds import PartTask, group_part, spill_fragment
from hse_dist.data.schema import Fragment, LogSchema, plan
from hse_dist.data.shuffle import SAMPLED, SpillTask, count_parts
from hse_dist.data.source import LogFile, find_files
from hse_dist.data.task_memory import Cost, memory_bytes
from hse_dist.data.vocabulary import assign_rows, item_counts, merge_counts, read_ids, write_ids, write_vocabulary
from hse_dist.errors import DataError
from hse_dist.progress import Progress
from hse_dist.tasks import map_tasks

STAGES = {"spill": 0.08, "group": 0.05, "count": 0.04}
"""Share of time that the rounds of a feature are taken to need, beside the log's sum of 1."""


class _Columns(ColumnNames):
    value: str | None = None


@dataclass(frozen=True)
class _Table:
    """A feature's table as a log."""

    settings: DataSettings
    schema: LogSchema
    fragments: list[Fragment]
    in_log: bool
    """Whether users' values stand in the lines of the log itself, some of which are beside hidden items."""


class FeatureRounds:
    """The rounds of all features.

    Args:
        settings: `features`, and how the log is prepared.
        folder: the prepared folder, and `work` the one of the rounds' files.
        progress: has the stages of `stages`; costs: takes those of the tasks.
    """

    def __init__(
        self, settings: DataSettings, folder: Path, work: Path, progress: Progress, costs: dict[str, list[Cost]]
    ) -> None:
        self._settings, self._folder, self._work = settings, folder, work
        self._progress, self._costs = progress, costs
        self._tables: dict[str, _Table] = {}
        self._parts: dict[str, int] = {}
        self._spills: dict[str, tuple[str, ...]] = {}
        self._summaries: dict[str, dict[str, Any]] = {}

    @staticmethod
    def stages(settings: DataSettings) -> dict[str, float]:
        """Stages of progress, and their shares of time."""
        named = [name for name, feature in settings.features.items() if feature.column is not None]
        return {f"{name} {stage}": share for name in named for stage, share in STAGES.items()}

    def plan(self, log: Sequence[LogFile], schema: LogSchema) -> int:
        """Look at all tables; the parts that those of users need, 0 without any.

        Raises:
            DataError: a table cannot be read, or its ids are not those of the log.
        """
        most = 0
        for name, feature in self._settings.features.items():
            with _named(name, feature):
                if feature.column is not None:
                    own = self._tables[name] = _plan(self._settings, name, log, schema)
                    # a table without any value is told of when they are counted
                    needed = count_parts(own.fragments, own.schema, own.settings) if own.fragments else 1
                    self._parts[name] = needed
                    most = max(most, needed if feature.of == "user" else 0)
                elif feature.min_count > 1:
                    raise DataError(
                        f"The feature {name} has a row a user, and each has one.",
                        cause="Leave the setting out.",
                        setting=f"data.features.{name}.min_count",
                        value=feature.min_count,
                    )
        return most

    def group(self, parts: int) -> None:
        """Spill all tables, those of users into so many parts, and group them; the log's own values only when it is
        known which items are hidden."""
        for name, own in self._tables.items():
            feature, work = self._settings.features[name], self._work_of(name)
            spills = work / "spills"
            spills.mkdir(parents=True)
            self._parts[name] = number = parts if feature.of == "user" else self._parts[name]
            with _named(name, feature):
                spilt = self._run(
                    spill_fragment,
                    [
                        SpillTask(index, fragment, own.schema, own.settings, number, str(spills))
                        for index, fragment in enumerate(own.fragments)
                    ],
                    f"{name} spill",
                )
                self._spills[name] = files = tuple(path for one in spilt for path in one.files)
                if own.in_log:
                    continue
                each = [
                    PartTask(own.settings, own.schema, (part,), files, str(work), str(self._folder), "")
                    for part in range(number)
                ]
                self._run(group_part, each, f"{name} group")
            shutil.rmtree(spills)

    def count(self, trained: Sequence[int]) -> list[dict[str, Any]]:
        """Make all vocabularies, and the lists of items; what the manifest says of the features, in their order.

        Args:
            trained: training users of each part of the log.
        """
        return [
            self._count(name) if name in self._tables else self._own_ids(name, trained)
            for name in self._settings.features
        ]

    def _own_ids(self, name: str, trained: Sequence[int]) -> dict[str, Any]:
        self._work_of(name).mkdir(parents=True)
        ends = np.cumsum([0, *trained])
        np.save(self._work_of(name) / "first-rows.npy", ends[:-1])
        return {"name": name, "of": "user", "rows": int(ends[-1]), "vocabulary": None, "lists": None}

    def _count(self, name: str) -> dict[str, Any]:
        feature, work = self._settings.features[name], self._work_of(name)
        count, parts = count_user_values if feature.of == "user" else count_item_values, range(self._parts[name])
        tasks = [FeatureTask(self._settings, name, part, str(self._work)) for part in parts]
        own = self._tables[name]
        if own.in_log:
            grouped = [replace(task, schema=own.schema, spills=self._spills[name]) for task in tasks]
            self._run(group_log_values, grouped, f"{name} group")
            shutil.rmtree(work / "spills")
        self._run(count, tasks, f"{name} count")
        merged = merge_counts(item_counts(f"{work}/part-{part:05d}") for part in parts)
        kept = merged.filter(pa.array(merged.column("count").to_numpy() >= feature.min_count))
        if not kept.num_rows:
            largest, key = pc.max(merged.column("count")).as_py(), own.settings.columns.user
            raise without_values(name, feature, key, largest, self._an_id_each(name))
        if kept.num_rows > MOST_ITEMS:
            raise DataError(
                f"The feature {name} has {kept.num_rows} values, more than {MOST_ITEMS}.",
                cause="Leave rare ones out.",
                setting=f"data.features.{name}.min_count",
                value=feature.min_count,
            )
        counts, values = kept.column("count").to_numpy(), kept.column("item").combine_chunks()
        warn_of_several(name, feature, values)
        rows = assign_rows(counts, np.ones(len(counts), bool))
        write_ids(work / "values.arrow", values)
        np.save(work / "rows.npy", rows)
        folder = self._folder / "features" / name
        folder.mkdir(parents=True)
        write_vocabulary(folder / "vocabulary.parquet", values, rows, counts, what="value")
        lists = None
        if feature.of == "item":
            items = int(np.load(self._work / "rows.npy", mmap_mode="r").max()) + 1
            having = write_item_lists(work, self._parts[name], folder / "items.parquet", items)
            self._summaries[name] = summary(name, feature, len(rows), having, items)
            lists = self._entry(folder / "items.parquet")
        vocabulary = self._entry(folder / "vocabulary.parquet")
        return {"name": name, "of": feature.of, "rows": len(rows), "vocabulary": vocabulary, "lists": lists}

    def summaries(self, found: Sequence[dict[str, Any]], having: Counter[str], users: int) -> dict[str, Any]:
        """What the job says of each feature, in their order.

        Args:
            found: what `count` gave.
            having: how many training users have a value of each feature of users; users: how many there are.
        """
        return {
            one["name"]: self._summaries.get(one["name"])
            or summary(one["name"], self._settings.features[one["name"]], one["rows"], having[one["name"]], users)
            for one in found
        }

    def _an_id_each(self, name: str) -> tuple[Any, Any]:
        """An id of a feature's table and one of the log: of users, or of items that are left."""
        parts = [f"part-{part:05d}" for part in range(self._parts[name])]
        own, log = (
            next((ids[0].as_py() for part in parts if len(ids := Part.load(str(folder / part)).users)), None)
            for folder in (self._work_of(name), self._work)
        )
        of_user = self._settings.features[name].of == "user"
        return own, log if of_user else read_ids(self._work / "items.arrow")[0].as_py()

    def _entry(self, path: Path) -> dict[str, str]:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"path": str(path.relative_to(self._folder)), "sha256": digest}

    def _work_of(self, name: str) -> Path:
        return self._work / "features" / name

    def _run(self, function: Callable[[Any], tuple[Any, Cost]], tasks: Sequence[Any], stage: str) -> list[Any]:
        with self._progress.stage(stage, [1.0] * len(tasks)) as meter:
            metered = [replace(task, meter=meter(index)) for index, task in enumerate(tasks)]
            results = map_tasks(function, metered, at_a_time=self._settings.tasks, label=f"prepare {stage}")
        self._costs[stage] = [cost for _, cost in results]
        return [result for result, _ in results]


def _plan(settings: DataSettings, name: str, log: Sequence[LogFile], schema: LogSchema) -> _Table:
    feature = settings.features[name]
    key = feature.key or getattr(settings.columns, feature.of)
    if key == feature.column:
        raise DataError(
            f"The feature {name} has its ids and its values in one column.",
            setting=f"data.features.{name}.column",
            value=key,
        )
    in_log = feature.source in ("", settings.source)
    if in_log:
        files = list(log)
    elif feature.source.startswith(catalog.PREFIX):
        files = find_files(str(catalog.fetch(feature.source.removeprefix(catalog.PREFIX))))
    else:
        files = find_files(feature.source, feature.format, settings.schemes)
    in_log = in_log and feature.of == "user"
    beside = settings.columns.item if in_log else None
    columns = _Columns(user=key, value=feature.column).model_copy(update={"item": beside})
    # parts of items need not be those of the log
    buckets = settings.buckets if feature.of == "user" else 1
    own = settings.model_copy(update={"columns": columns, "buckets": buckets, "min_rating": None, "extendable": False})
    found, fragments = plan(files, own, "value")
    ids: pa.DataType = getattr(schema, feature.of)
    if found.user != ids:
        raise DataError(
            f"The column {key} of the feature {name} is {found.user}, the {feature.of} ids of the log are {ids}.",
            cause='If they are the same ids, data.ids = "string" reads both as texts.',
            setting=f"data.features.{name}.key",
            value=key,
        )
    value = found.item if feature.separator is None else pa.large_string()
    names = ColumnNames(user=key, item=feature.column or "", timestamp=beside)
    as_log = own.model_copy(update={"columns": names})
    fragments = [replace(one, beside=schema.item if in_log else None) for one in fragments]
    hashes = pa.int64() if in_log else None
    return _Table(as_log, LogSchema(ids, value, hashes), _of_values(fragments, feature, as_log), in_log)


def _of_values(fragments: list[Fragment], feature: FeatureSettings, settings: DataSettings) -> list[Fragment]:
    """The fragments of a table as those of a log of values: their rows are the values, by the first lines of a few."""
    found = [
        replace(
            one,
            names=_as_item(one.names),
            types=_types(one, feature),
            valued=True,
            separator=feature.separator,
        )
        for one in fragments
        if "value" in one.names or one.file.partition.get(feature.column or "")
    ]
    some = found[:: max(1, -(-len(found) // SAMPLED))]
    most = max((values_a_line(one, memory_bytes(settings)) for one in some), default=1.0)
    return [replace(one, rows=math.ceil(one.rows * max(1.0, most))) for one in found]


def _types(fragment: Fragment, feature: FeatureSettings) -> dict[str, pa.DataType]:
    types = _as_item(fragment.types)
    if fragment.file.format in ("csv", "tsv"):
        if feature.separator is not None:
            types["item"] = pa.string()
        if "item" in fragment.names and fragment.names["item"] == fragment.names.get("value"):  # read once
            types["item"] = types["timestamp"] = pa.string()
    return types


def _as_item(roles: Any) -> dict[str, Any]:
    """The roles of a log whose items are values; times are its own items, if they stand in it."""
    as_log = {"value": "item", "item": "timestamp"}
    return {as_log.get(role, role): what for role, what in roles.items()}


@contextmanager
def _named(name: str, feature: FeatureSettings) -> Iterator[None]:
    """Says of what is wrong with a feature's table which of the feature's settings to look at."""
    own = f"data.features.{name}"
    settings = {
        "data.source": (f"{own}.source", feature.source),
        "data.format": (f"{own}.format", feature.format),
        "data.columns.user": (f"{own}.key", feature.key),
        "data.columns.item": (f"{own}.column", feature.column),
        "data.columns.value": (f"{own}.column", feature.column),
    }
    try:
        yield
    except DataError as error:
        if error.setting not in settings:
            raise
        setting, value = settings[error.setting]
        what, cause = (
            text.replace("The log ", f"The table of the feature {name} ") for text in (error.what, error.cause)
        )
        if value is None:
            cause = f"{cause} Set it to the column with the ids.".lstrip()
        raise DataError(what, cause=cause, setting=setting, value=value) from None
