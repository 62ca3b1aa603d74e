"""`benchmark start`: the local-inverse start of a large catalogue, stage by stage, at growing sizes.

In: the size of a made-up log; items lie in clusters and a user likes few of them, so that co-occurrence is local. Out:
seconds of each stage, from prepared histories to a finished start, core seconds of all, which other work on the machine
hardly changes, and the highest memory of all processes together, for several catalogues with the same interactions an
item: is the time in proportion to the items? The log and its preparation do not count; nor does Ray, which is started
where more than one task is to run at a time.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import numpy as np

from hse_dist.benchmark.report import Chart, Report
from hse_dist.cluster import connect
from hse_dist.config import ClusterSettings, Config, SyntheticSettings, parse_config
from hse_dist.data import synthetic
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.sparsity.start import make_start

STAGES = ("count", "solve", "cut", "refit")
SECONDS_BETWEEN_LOOKS = 1.0
MOST_SECONDS, MOST_BYTES = 15 * 60, 6 * 10**9
"""Target: of a million items with a hundred interactions each, on two cores."""
TARGET_ITEMS = 1_000_000


def benchmark_start(
    *,
    items: int = 1_000_000,
    interactions: int = 100,
    history: int = 20,
    entries: int = 64,
    live: int = 16,
    tasks: int = 2,
    memory_mb: int = 1024,
    sizes: int = 3,
) -> Report:
    """One start at each size.

    Args:
        items: of the largest catalogue. interactions: an item, about. history: mean of a user. entries: m, items of a
            pattern. live: entries a row that the cut leaves. tasks: at a time. memory_mb: of a task. sizes: catalogues,
            each half of the next.

    Returns:
        figures `seconds`, `core_seconds` and `resident_bytes` (the highest; −1 where the system does not tell) of the
        largest, and `growth`: its core seconds an item, by those of the smallest; a row a catalogue.

    Raises:
        ResourceError: fewer cores than tasks.
    """
    shape = {"interactions": interactions, "history": history, "entries": entries, "live": live, "tasks": tasks}
    shape |= {"memory_mb": memory_mb}
    with connect(ClusterSettings(workers=tasks if tasks > 1 else 0)):
        rows = [_measure(items >> turn, shape) for turn in reversed(range(sizes))]
    return _report(rows, {"items": items, **shape, "sizes": sizes})


def _measure(items: int, shape: dict[str, int]) -> dict[str, Any]:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(shape, folder)
        made = SyntheticSettings(
            users=-(-items * shape["interactions"] // shape["history"]), items=items, mean_history=shape["history"]
        )
        synthetic.write(made, config.data.columns, Path(config.data.source), tasks=shape["tasks"])
        prepare(config)
        prepared = Prepared(config.data.folder)
        began: list[tuple[float, float]] = []
        with Watcher() as watcher:

            def note(_: str) -> None:
                began.append((time.perf_counter(), watcher.core_seconds()))

            start = make_start(config, prepared, f"{folder}/start", seen=note)
            note("end")
        interactions = int(prepared.counts().sum())
    seconds, core_seconds = (
        dict(zip(STAGES, np.diff(column).tolist(), strict=True)) for column in zip(*began, strict=True)
    )
    return {
        "items": prepared.items,
        "interactions": interactions,
        "live entries": start.live_entries,
        **{f"{stage}, s": value for stage, value in seconds.items()},
        **{f"{stage}, core s": value for stage, value in core_seconds.items()},
        "seconds": sum(seconds.values()),
        "core seconds": sum(core_seconds.values()),
        "core µs an item": 1e6 * sum(core_seconds.values()) / prepared.items,
        "own memory, GB": 1e-9 * watcher.own,
        "with mapped files, GB": 1e-9 * watcher.highest,
    }


def _config(shape: dict[str, int], folder: str) -> Config:
    own = {"tasks": shape["tasks"], "memory_mb": shape["memory_mb"]}
    return parse_config(
        {
            "data": {
                "source": f"{folder}/log",
                "folder": f"{folder}/data",
                "columns": {"timestamp": "timestamp"},
                **own,
            },
            "tables": {"item": {"live": shape["live"]}},
            "sparsity": {"start": "local_inverse", "local_inverse": {"entries": shape["entries"], **own}},
        },
        "of the benchmark",
    )


class Watcher:
    """Memory of this process and of those that it started, all together, at its highest during the block.

    Attributes:
        own: bytes of their own memory; highest: with the pages of files that they map, which the system takes back when
            it needs them. A page that several share counts once. Below 0 where the system does not tell.
    """

    def __init__(self) -> None:
        self.own = self.highest = -1
        self._used: dict[str, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def core_seconds(self) -> float:
        """That the processes have used so far; of one that has ended, until it was last looked at."""
        self._used |= {pid: used for pid in _family() if (used := _core_seconds(pid)) is not None}
        return sum(self._used.values())

    def _watch(self) -> None:
        while not self._done.wait(SECONDS_BETWEEN_LOOKS):
            self._look()

    def _look(self) -> None:
        self.core_seconds()
        found = [_memory(pid) for pid in _family()]
        if any(found):
            self.highest = max(self.highest, sum(one.get("Pss:", 0) for one in found))
            self.own = max(self.own, sum(one.get("Pss_Anon:", 0) + one.get("Pss_Shmem:", 0) for one in found))


def _family() -> list[str]:
    """This process and those below it that run tasks."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[status.parent.name] = status.read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has ended
            continue
    own = [Path("/proc/self").resolve().name]
    for pid in own:
        own += [child for child, parent in parents.items() if parent == pid]
    return [own[0], *(pid for pid in own[1:] if _name(pid).startswith("ray::"))]


def _name(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _core_seconds(pid: str) -> float | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: str) -> dict[str, int]:
    """Bytes by the system's names; empty where it does not tell."""
    try:
        lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    except OSError:
        return {}
    return {line[0]: int(line[1]) << 10 for line in lines}


def _report(rows: list[dict[str, Any]], shape: dict[str, int]) -> Report:
    last = rows[-1]
    resident = int(1e9 * last["with mapped files, GB"])
    notes = []
    if shape["items"] >= TARGET_ITEMS and (last["seconds"] > MOST_SECONDS or resident > MOST_BYTES):
        notes.append(f"{last['seconds']:.0f} s and {1e-9 * resident:.1f} GB; the target is {MOST_SECONDS} s and 6 GB")
    return Report(
        kind="start",
        figures={
            "seconds": last["seconds"],
            "core_seconds": last["core seconds"],
            "resident_bytes": resident,
            "growth": last["core µs an item"] / rows[0]["core µs an item"],
        },
        rows=rows,
        shape=dict(shape),
        notes=notes,
        chart=Chart(
            title="From histories to a start",
            y_label="seconds",
            x_label="items of the catalogue",
            series={stage: [row[f"{stage}, s"] for row in rows] for stage in STAGES},
            x=[float(row["items"]) for row in rows],
            kind="lines",
            log_x=True,
            log_y=True,
        ),
    )
