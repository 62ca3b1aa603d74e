"""How much memory this process may still take.

In: nothing but the system's own files. Out: bytes. The smaller of what the machine has and what its control group
allows counts, as a container's limit does not show in the machine's numbers.
"""

from __future__ import annotations

import os
from pathlib import Path

_CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory(root: str | Path = "/") -> int:
    """Bytes available; `root` is where the system's files are looked for.

    Without them (not Linux) the whole physical memory is the answer.
    """
    root = Path(root)
    free = [_machine(root / "proc/meminfo")]
    for limit, used in _CONTROL_GROUPS:
        most, now = _number(root / limit[1:]), _number(root / used[1:])
        if most is not None and now is not None:
            free.append(max(most - now, 0))
    return min(free)


def _machine(meminfo: Path) -> int:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _number(path: Path) -> int | None:
    """The number in a file; None without the file or where it says `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
