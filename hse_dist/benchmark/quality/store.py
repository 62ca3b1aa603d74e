"""The cells of the matrix, and their results on disk.

In: cells. Out: for each one a JSON file `cells/NAME.json`, whole or not there, whose name ends in a digest of all that
decides the result: method, budget, seed, the prepared data, and the settings that differ from their defaults. Code has
no part in it: a result that code has made wrong is a file to remove, and its name tells which.

A setting that is new since a result was kept has its default, which is what the code did before, so the result still
holds. A default that has changed since is seen, as a result keeps its settings in full.

A lock a cell lets several commands fill one folder; the system drops it with the process that held it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hse_dist.config import Config
from hse_dist.files import read_json, write_json

DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Cell:
    """One number of the matrix.

    Attributes:
        budget: bytes an item; None: the method has its own size.
        prepared: folder of the histories. fingerprint: of their content.
        config: of a method of this project, None of a baseline.
        teacher: of the run that it learns from, if it does.
        changed: its settings that differ from the defaults and decide the result; whole: all that do.
        cost: expected seconds, of use for the order alone.
    """

    data: str
    method: str
    budget: int | None
    seed: int
    prepared: str
    fingerprint: str
    cost: float
    config: Config | None = None
    teacher: Config | None = None
    changed: dict[str, Any] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def name(self) -> str:
        """DATA.METHOD.BYTES.SEED.DIGEST, of its files."""
        decides = [self.data, self.method, self.budget, self.seed, self.fingerprint, self.changed]
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        return f"{self.data}.{self.method}.{self.budget or 'own'}.{self.seed}.{digest[:16]}"

    @property
    def group(self) -> tuple[str, int, bool]:
        """Cells of one group may share a process, and what it holds of their data."""
        return self.data, self.seed, self.config is not None

    def __str__(self) -> str:
        size = "" if self.budget is None else f", {self.budget} bytes"
        return f"{self.data}, {self.method}{size}, seed {self.seed}"


class Store:
    """The results in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """What was kept of a cell: `state`, and `result` and `seconds` or `error`; None where nothing holds."""
        path = self._path(cell)
        if not path.exists():
            return None
        kept: dict[str, Any] = read_json(path, "result of a cell")
        settings = kept["settings"]
        changed = any(settings[key] != cell.whole[key] for key in settings.keys() & cell.whole.keys())
        return None if changed else kept

    def write(self, cell: Cell, outcome: dict[str, Any]) -> None:
        """Keep what became of a cell."""
        what = {"data": cell.data, "method": cell.method, "budget": cell.budget, "seed": cell.seed}
        content = {**what, "fingerprint": cell.fingerprint, "settings": cell.whole, **outcome}
        write_json(self._path(cell), content)

    def users(self, cell: Cell) -> Path:
        """Where the metrics of each user go, for paired comparisons."""
        return self.folder / "users" / f"{cell.name}.parquet"

    def run(self, cell: Cell) -> Path:
        """The run folder of a cell that is under way; one that was interrupted goes on from there."""
        return self.folder / "runs" / cell.name

    def teacher(self, cell: Cell) -> Path:
        """The run that a cell, and others of its data and seed, learn from."""
        decides = json.dumps([cell.fingerprint, cell.changed["teacher"]], sort_keys=True)
        return self.folder / "teachers" / f"{cell.data}.{cell.seed}.{hashlib.sha256(decides.encode()).hexdigest()[:16]}"

    def factors(self, cell: Cell) -> Path:
        """Where the baselines of one data set and seed keep what they share."""
        return self.folder / "factors" / cell.fingerprint[:16]

    @contextmanager
    def lock(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Whether the block has `name` for itself; with `wait` it does, in the end."""
        path = self.folder / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"
