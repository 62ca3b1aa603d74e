"""How far a job is, while it works: a bar on a terminal, else a log line every few seconds. Every job uses this.

In: what tasks and ranks say of themselves — a `Meter` writes it into a small file of its own, which reaches the driver
from any machine that the folder reaches. Out, from a thread of the driver: the stage, its share done, the share of all
stages, a rate in this stage, and seconds to go; or a rank's own words in their place. Nothing goes to standard output.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hse_dist.screen import bar

SECONDS_BETWEEN = 5.0
"""Between two lines of a log."""
SAME_SECONDS = 60.0
"""Until a log repeats a line that says nothing new."""
BAR_SECONDS = 0.25
"""Between two looks of a bar."""
METER_SECONDS = 1.0
"""Between two notes of a task."""

Look = tuple[float | None, str]
"""Share of the job that is done (None: nobody knows) and words that say more."""
log = logging.getLogger(__name__)


class Meter:
    """Notes how far a task is.

    Args:
        path: of its file; an empty one notes nothing.
    """

    def __init__(self, path: str = "") -> None:
        self._path, self._next = path, 0.0

    def __call__(self, share: float, count: int, words: str = "") -> None:
        """The share of the task that is done, 0 … 1, and what went through it; `words` take the place of the rate."""
        now = time.monotonic()
        if self._path and (now >= self._next or share >= 1.0):
            self._next = now + METER_SECONDS
            # not by a rename: a note that is read half-written is passed over. No job ends for its progress.
            with suppress(OSError):
                Path(self._path).write_text(f"{share:.6f} {count} {words}\n", encoding="utf-8")


class Display:
    """What people see of a job: `look()` now and then, while a block runs."""

    def __init__(self, job: str) -> None:
        self._job, self._said = job, time.monotonic()
        self._words, self._changed = "", self._said

    @contextmanager
    def showing(self, look: Callable[[], Look]) -> Iterator[None]:
        """Show what `look` says, from a thread, until the block ends."""
        done = threading.Event()
        with bar(self._job) as show:
            thread = threading.Thread(target=self._watch, args=(look, show, done), name="progress", daemon=True)
            thread.start()
            try:
                yield
            finally:
                done.set()
                thread.join()

    def _watch(
        self, look: Callable[[], Look], show: Callable[[float | None, str], None] | None, done: threading.Event
    ) -> None:
        between = SECONDS_BETWEEN if show is None else BAR_SECONDS
        while not done.wait(max(0.0, self._said + between - time.monotonic())):
            self._said = time.monotonic()
            share, words = look()
            if show is not None:
                show(share, words)
            elif words != self._words or self._said >= self._changed + SAME_SECONDS:
                self._words, self._changed = words, self._said
                log.info("%s: %s", self._job, words)


class Progress:
    """A job in stages, from the driver's side.

    Args:
        folder: for the tasks' notes; made here.
        stages: name → about the share of time that it takes, in their order.
        job: its name. unit: what the tasks count.
    """

    def __init__(self, folder: Path, stages: Mapping[str, float], job: str = "prepare", unit: str = "interactions"):
        self._folder, self._stages, self._unit = folder, dict(stages), unit
        self._job, self._display, self._before = job, Display(job), 0.0
        self._began = time.monotonic()
        with suppress(OSError):  # a folder that cannot be written is the job's to tell of
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def stage(self, name: str, sizes: Sequence[float]) -> Iterator[Callable[[int], str]]:
        """Tell of the stage while the block runs.

        Args:
            name: one of the stages.
            sizes: how large each task is beside the others.

        Yields:
            The path for the meter of task 0, 1, ….
        """
        began = time.monotonic()
        meters = [str(self._folder / f"{name}-{index:05d}") for index in range(len(sizes))]
        with self._display.showing(lambda: self._look(name, meters, sizes, began)):
            yield meters.__getitem__
        self._before += self._stages[name]

    def _look(self, name: str, meters: Sequence[str], sizes: Sequence[float], began: float) -> Look:
        notes = [_read(path) for path in meters]
        total, now = sum(sizes), time.monotonic()
        share = sum(size * noted for size, (noted, _, _) in zip(sizes, notes, strict=True)) / total if total else 1.0
        done = (self._before + share * self._stages[name]) / sum(self._stages.values())
        where = (
            f"{name} {100 * share:.0f} %, {100 * done:.0f} % of all" if name != self._job else f"{100 * share:.0f} %"
        )
        if own := next((words for _, _, words in notes if words), ""):
            return done, f"{where}, {own}"
        to_go = f"{(now - self._began) * (1 - done) / done:.0f} s to go" if done else "just begun"
        rate = sum(count for _, count, _ in notes) / max(now - began, 1e-9)
        return done, f"{where}, {rate:,.0f} {self._unit}/s, {to_go}"


@contextmanager
def telling(job: str, folder: Path, unit: str) -> Iterator[str]:
    """Tell of a job of one stage and one task while the block runs; the path for its meter.

    Args:
        folder: for the note; another one that lies there goes, and it goes at the end.
    """
    shutil.rmtree(folder, ignore_errors=True)
    progress = Progress(folder, {job: 1.0}, job, unit)
    try:
        with progress.stage(job, [1.0]) as meter:
            yield meter(0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def busy(job: str, what: str) -> Iterator[Callable[[str], None]]:
    """Tell that a job is at something whose end nobody knows; what is yielded changes what that is."""
    now, began = [what], time.monotonic()
    with Display(job).showing(lambda: (None, f"{now[0]}, {time.monotonic() - began:.0f} s")):
        yield lambda changed: now.__setitem__(0, changed)


def _read(path: str) -> tuple[float, int, str]:
    """(share, count, words) of a note; nothing yet where there is none, or half of one."""
    try:
        share, count, *words = Path(path).read_text(encoding="utf-8").strip("\n").split(" ", 2)
        return float(share), int(count), "".join(words).strip()
    except (OSError, ValueError):
        return 0.0, 0, ""
