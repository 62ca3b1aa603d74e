"""What a prepared folder keeps so that it can be extended by new files of its log.

In: a prepared folder that was made with `data.extendable`, and the files of the log as they are now. Out: the files
that were not read yet, and the interactions that were, as fragments of a log. A preparation of both gives the histories
that one of the whole log would give; only the rows differ: items that were there keep theirs, new ones come behind
them.

    interactions/part-00000.parquet   distinct interactions (user, item, earliest time), before any minimum count
    ledger.json                       the files that were read: name, bytes, time of the last change

A file that has changed is read again: an interaction that is there already changes nothing. What was removed from the
log stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hse_dist.config import ColumnNames, DataSettings
from hse_dist.data.generations import Generations, next_rows, stale
from hse_dist.data.manifest import VERSION, differing
from hse_dist.data.prepared import Prepared, reading
from hse_dist.data.schema import Fragment, LogSchema, counts_time, plan
from hse_dist.data.source import LogFile, find_files
from hse_dist.data.vocabulary import plain_ids, positions, write_ids
from hse_dist.errors import ConfigError, DataError
from hse_dist.files import read_json, refuse_devices, write_json

LEDGER, INTERACTIONS, LATEST = "ledger.json", "interactions", "latest-of-items.npy"
WRITTEN_ROWS = 1 << 16
"""Interactions that are written at a time."""
ELSEWHERE = {"source", "format"}
"""Settings of the content that may differ from those of the folder that is extended: new files may lie elsewhere."""


@dataclass
class KeptPart:
    """Writes the distinct interactions of a part (`grouping.Keep`); `latest` is the last time of each of its items."""

    folder: Path
    part: int
    schema: LogSchema
    latest: np.ndarray = field(default_factory=lambda: np.empty(0))

    def __call__(self, users: pa.Array, items: pa.Array, key: np.ndarray, times: np.ndarray | None) -> None:
        path, width = self.folder / INTERACTIONS / f"part-{self.part:05d}.parquet", max(1, len(items))
        path.parent.mkdir(exist_ok=True)
        self.latest = np.full(len(items), -np.inf)
        if not len(key):
            return
        with pq.ParquetWriter(path, self.schema.plain(), compression="zstd", use_dictionary=False) as writer:
            for first in range(0, len(key), WRITTEN_ROWS):
                piece = key[first : first + WRITTEN_ROWS]
                columns = [
                    plain_ids(users.take(pa.array(piece // width))),
                    plain_ids(items.take(pa.array(piece % width))),
                ]
                if times is not None:
                    columns.append(pa.array(times[first : first + WRITTEN_ROWS]))
                    np.maximum.at(self.latest, piece % width, times[first : first + WRITTEN_ROWS])
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self.schema.plain()))


def write_ledger(folder: Path, files: Sequence[LogFile], before: dict[str, Any], fragments: list[Fragment]) -> None:
    """Note what was read, in addition to what was `before`."""
    read = {file.name: {"bytes": file.size, "modified": file.modified} for file in files}
    timed = [fragment for fragment in fragments if "timestamp" in fragment.types and not fragment.kept]
    numbers = counts_time(timed) if timed else None
    write_json(folder / LEDGER, {"files": {**before, **read}, "numbers": numbers, "kept": _kept(folder)})


def _kept(folder: Path) -> int:
    """Interactions that are kept."""
    found = 0
    for path in (folder / INTERACTIONS).glob("*.parquet"):
        with reading(path):
            refuse_devices(path)
            found += pq.read_metadata(path).num_rows
    return found


def refuse_features(settings: DataSettings) -> None:
    """Raises ConfigError: there are features, whose rows no extension adds to yet."""
    if settings.features:
        raise ConfigError(
            "Features cannot be extended or followed yet.",
            cause="Leave them out, or prepare the whole log anew.",
            setting="data.features",
            value=list(settings.features),
        )


class Extended:
    """A prepared folder that is to be extended.

    Raises:
        DataError: it is none, or it was not made with `data.extendable`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.prepared = Prepared(folder)
        path = self.prepared.folder / LEDGER
        if self.prepared.manifest.get("version") != VERSION:
            raise DataError(
                f"The prepared folder {folder} was not made by this version of prepare.", cause="Prepare it anew."
            )
        if not path.exists():
            raise DataError(
                f"The prepared folder {folder} keeps nothing that could be extended.",
                cause="Prepare it anew with data.extendable = true.",
                setting="data.extendable",
                value=False,
            )
        ledger = read_json(path, "ledger of the prepared folder")
        if not isinstance(ledger, dict) or not isinstance(ledger.get("files"), dict):
            raise DataError(f"{path} is no ledger of a prepared folder.", cause="Prepare it again.")
        self.files: dict[str, Any] = ledger["files"]
        self.numbers = ledger.get("numbers")
        if (there := _kept(self.prepared.folder)) != ledger.get("kept"):
            raise DataError(
                f"{self.prepared.folder} keeps {there} interactions, its ledger says {ledger.get('kept')}.",
                cause="Files of it are missing or were changed: prepare it again.",
            )

    def news(self, files: Sequence[LogFile]) -> list[LogFile]:
        """Those that were not read, or have changed since."""
        known = self.files
        return [file for file in files if known.get(file.name) != {"bytes": file.size, "modified": file.modified}]

    def unread(self, files: Sequence[LogFile]) -> list[LogFile]:
        """The same.

        Raises:
            DataError: there are none.
        """
        if found := self.news(files):
            return found
        raise DataError(
            f"All {len(files)} files of the log are in {self.prepared.folder} already.",
            cause="There is nothing to extend it by.",
            setting="--extend",
            value=str(self.prepared.folder),
        )

    def rows(self, items: pa.Array, counts: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, Generations]:
        """The rows of `items`, sorted ids, in the next version, and the generations of all rows; see `next_rows`."""
        found = pc.index_in(self.prepared.item_ids().cast(items.type), value_set=items)
        places = found.fill_null(-1).to_numpy().astype(np.int64)
        return next_rows(self.prepared.generations(), places, counts, used, len(self.lineage))

    def fresh(self, items: pa.Array, parts: Sequence[Path], days: float, work: Path) -> pa.Array:
        """Those of `items`, sorted ids, that somebody has taken in the last days.

        Args:
            parts: folders with the items of each part and the latest time of each.
            work: a folder for a file of all items.
        """
        if not len(items):
            return items
        latest, catalogue = np.full(len(items), -np.inf), work / "items-before-eviction.arrow"
        write_ids(catalogue, items)
        for folder in parts:
            with pa.OSFile(str(folder / "items.arrow")) as source:
                own = pa.ipc.open_file(source).get_batch(0).column("id")
            places = positions(own, catalogue)
            known = places >= 0
            latest[places[known]] = np.maximum(latest[places[known]], np.load(folder / LATEST)[known])
        catalogue.unlink()
        return items.filter(pa.array(~stale(latest, days * 86_400 * (1 if self.numbers else 1e6))))

    def check(self, settings: dict[str, Any]) -> None:
        """Check that the folder was made with these settings of the content.

        Raises:
            DataError: it was not; names them.
        """
        made = self.prepared.manifest.get("settings") or {}
        now, then = ({key: own.get(key) for key in settings if key not in ELSEWHERE} for own in (settings, made))
        if now != then:
            raise DataError(
                f"The prepared folder {self.prepared.folder} was made with other settings: {differing(then, now)}.",
                cause="An extension needs those that it was made with.",
            )

    def join(self, files: list[LogFile], settings: DataSettings) -> tuple[LogSchema, list[Fragment]]:
        """The types, and the fragments of what was read and of the new files.

        Raises:
            DataError: see `plan`; or ids or times of the new files are of another type.
        """
        timed = settings.columns.timestamp is not None
        columns = ColumnNames(user="user", item="item", timestamp="timestamp" if timed else None)
        own = settings.model_copy(update={"columns": columns, "min_rating": None})
        old, kept = plan(find_files(str(self.prepared.folder / INTERACTIONS), "parquet"), own)
        new, fragments = plan(files, settings)
        for role in ("user", "item"):
            before, now = getattr(old, role), getattr(new, role)
            if before != now:
                raise DataError(
                    f"The new files have {role} ids of type {now}, those that were read have {before}.",
                    cause='Prepare anew with data.ids = "string".',
                    setting="data.ids",
                    value=settings.ids,
                )
        if timed and self.numbers is not None and counts_time(fragments) != self.numbers:
            raise DataError(
                "The new files have dates and those that were read have numbers as times, or the other way round.",
                cause="All files need one type.",
                setting="data.columns.timestamp",
                value=settings.columns.timestamp,
            )
        time = pa.float64() if pa.float64() in (old.timestamp, new.timestamp) else new.timestamp
        return LogSchema(new.user, new.item, time), [*(replace(one, kept=True) for one in kept), *fragments]

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The versions that an extension of this one comes from, oldest first: fingerprint and items of each."""
        own = {"fingerprint": self.prepared.fingerprint, "items": self.prepared.items}
        return [*self.prepared.manifest.get("lineage", []), own]
