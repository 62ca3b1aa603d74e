"""Processes of this machine: who descends from whom, and that nothing of what one has started is left.

In: process ids. Out: their descendants, by /proc; and their end. Linux only.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
LOOK_SECONDS = 0.1
SECONDS_TO_BE_KILLED = 10.0
"""After which a process that SIGKILL does not end is left to the system."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Process:
    """A process and its command line; one that has ended and was not waited for yet has an empty one."""

    pid: int
    name: str


def descendants(root: int) -> list[Process]:
    """All processes below `root`."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:
                continue  # it has ended
    found, new = [], [root]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new]
        found += new
    return [Process(pid, names[pid]) for pid in found if pid in names]


def lives(pid: int) -> bool:
    """Whether it is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def family(pid: int) -> list[int]:
    """A process and all below it."""
    return [pid, *(one.pid for one in descendants(pid))]


def kill_with_children(pid: int) -> None:
    """SIGKILL to a process and all below it, as if their machine had gone."""
    kill(family(pid))


def kill(pids: Iterable[int]) -> None:
    """SIGKILL to those that still are."""
    send(signal.SIGKILL, pids)


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    """A signal to those that still are."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def nothing_left(seconds: float) -> Iterator[None]:
    """A block after which nothing lives of what was started in it, by whomever it was started in turn.

    Meanwhile this process adopts whoever below it loses a parent, so that nobody gets out of sight.

    Args:
        seconds: that processes have to end by themselves, once the block is over; then they are killed.
    """
    before = {one.pid for one in descendants(os.getpid())}
    _adopt(True)
    try:
        yield
    finally:
        end = time.monotonic() + seconds
        while (left := _living(before)) and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
        if left:
            log.info("%d processes did not end by themselves: %s", len(left), ", ".join(one.name[:40] for one in left))
        end = time.monotonic() + SECONDS_TO_BE_KILLED
        while left and time.monotonic() < end:  # one that is killed hands on its children
            kill(one.pid for one in left)
            time.sleep(LOOK_SECONDS)
            left = _living(before)
        _adopt(False)


def _living(but: set[int]) -> list[Process]:
    return [one for one in descendants(os.getpid()) if one.pid not in but and lives(one.pid)]


def _adopt(yes: bool) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)
