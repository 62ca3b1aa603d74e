"""How much memory this process may still take, and how much a process has.

In: nothing but the system's own files. Out: bytes. The smaller of what the machine has and what its control group
allows counts, as a container's limit does not show in the machine's numbers. Pages of files that were read once count
as free in both: the system gives them up when asked.
"""

from __future__ import annotations

import os
from pathlib import Path

_CONTROL_GROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of versions 2 and 1: folder, limit, use, and the name in memory.stat of what files take of the use."""


def available_memory(root: str | Path = "/") -> int:
    """Bytes available; `root` is where the system's files are looked for.

    Without them (not Linux) the whole physical memory is the answer.
    """
    root = Path(root)
    machine = _entry(root / "proc/meminfo", "MemAvailable:")
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if machine is None else machine * 1024]
    for folder, limit, used, files in _CONTROL_GROUPS:
        most, now = _number(root / folder / limit), _number(root / folder / used)
        if most is not None and now is not None:
            free.append(max(most - now + (_entry(root / folder / "memory.stat", files) or 0), 0))
    return min(free)


def resident_bytes(pid: int) -> int:
    """Of a process, with what it shares; 0 of one that has ended, and where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _entry(path: Path, name: str) -> int | None:
    """The number beside a name in a file of names and numbers; None without the file or the name."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    return next((int(words[1]) for words in lines if words and words[0] == name), None)


def _number(path: Path) -> int | None:
    """The number in a file; None without the file or where it says `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
