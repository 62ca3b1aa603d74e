"""How far `prepare` is, while its tasks run.

In: what tasks say of themselves — a `Meter` writes it into a small file of the task's own, which reaches the driver
from any machine that the work folder reaches. Out: a log line every few seconds from a thread of the driver: the stage,
its share done, the share of all stages, interactions a second in this stage, and seconds to go.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SECONDS_BETWEEN = 5.0
"""Between two lines."""
METER_SECONDS = 1.0
"""Between two notes of a task."""

log = logging.getLogger(__name__)


class Meter:
    """Notes how far a task is.

    Args:
        path: of its file; an empty one notes nothing.
    """

    def __init__(self, path: str) -> None:
        self._path, self._next = path, 0.0

    def __call__(self, share: float, interactions: int) -> None:
        """The share of the task that is done, 0 … 1, and the interactions that went through it."""
        now = time.monotonic()
        if self._path and (now >= self._next or share >= 1.0):
            self._next = now + METER_SECONDS
            # not by a rename: a note that is read half-written is passed over
            Path(self._path).write_text(f"{share:.6f} {interactions}\n", encoding="utf-8")


class Progress:
    """The driver's side.

    Args:
        folder: for the tasks' notes; made here.
        stages: name → about the share of time that it takes, in their order.
    """

    def __init__(self, folder: Path, stages: Mapping[str, float]) -> None:
        self._folder, self._stages = folder, dict(stages)
        self._before = 0.0
        self._began = time.monotonic()
        self._said = self._began
        folder.mkdir(parents=True)

    @contextmanager
    def stage(self, name: str, sizes: Sequence[float]) -> Iterator[Callable[[int], str]]:
        """Tell of the stage while the block runs.

        Args:
            name: one of the stages.
            sizes: how large each task is beside the others.

        Yields:
            The path for the meter of task 0, 1, ….
        """
        done, began = threading.Event(), time.monotonic()
        meters = [str(self._folder / f"{name}-{index:05d}") for index in range(len(sizes))]
        watched = (name, meters, sizes, began, done)
        thread = threading.Thread(target=self._watch, args=watched, name=f"progress of {name}", daemon=True)
        thread.start()
        try:
            yield meters.__getitem__
        finally:
            done.set()
            thread.join()
        self._before += self._stages[name]

    def _watch(
        self, name: str, meters: Sequence[str], sizes: Sequence[float], began: float, done: threading.Event
    ) -> None:
        while not done.wait(max(0.0, self._said + SECONDS_BETWEEN - time.monotonic())):
            notes = [_read(path) for path in meters]
            total = sum(sizes)
            share = sum(size * noted for size, (noted, _) in zip(sizes, notes, strict=True)) / total if total else 1.0
            self._say(name, share, sum(interactions for _, interactions in notes), began)

    def _say(self, name: str, share: float, interactions: int, began: float) -> None:
        now = self._said = time.monotonic()
        whole = sum(self._stages.values())
        done = (self._before + share * self._stages[name]) / whole
        to_go = f"{(now - self._began) * (1 - done) / done:.0f} s to go" if done else "just begun"
        rate = interactions / max(now - began, 1e-9)
        log.info(
            "prepare: %s %.0f %%, %.0f %% of all, %s interactions/s, %s",
            name,
            100 * share,
            100 * done,
            f"{rate:,.0f}",
            to_go,
        )


def _read(path: str) -> tuple[float, int]:
    """(share, interactions) of a note; nothing yet where there is none, or half of one."""
    try:
        share, interactions = Path(path).read_text(encoding="utf-8").split()
        return float(share), int(interactions)
    except (OSError, ValueError):
        return 0.0, 0
