"""Folders, disk, memory and clocks.

In: paths and numbers. Out: findings. What asks the system and what judges its answer are apart, so that a test can
judge any answer.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hse_dist.doctor.finding import Finding
from hse_dist.memory import available_memory

GB = 10**9
DISK = (2 * GB, 20 * GB)
"""Bytes below which a run cannot work, and below which it may run out: checkpoints, shuffles and Ray's spilled objects
go to disk."""
MEMORY = (2 * GB, 6 * GB)
"""A worker with torch and TorchRec takes .7 GB before it has a table."""
SHARED = (0, 10**9)
"""Ray keeps objects in shared memory, and on disk where that is too small; it says so and gets slow."""
SKEW = 1.0
"""Seconds by which clocks of nodes may differ: logs and checkpoints of nodes are compared by time."""


def judge_room(check: str, where: str, free: int, limits: tuple[int, int], mend: str) -> Finding:
    """Free bytes against the two limits."""
    text = f"{free / GB:.1f} GB free{where}"
    if free < limits[0]:
        return Finding(check, "failed", text, mend)
    return Finding(check, "warning", text, mend) if free < limits[1] else Finding(check, "ok", text)


def judge_skew(offsets: Mapping[str, tuple[float, float]]) -> Finding:
    """Clocks of nodes: name → (seconds ahead of this one, seconds of uncertainty)."""
    if len(offsets) < 2:
        return Finding("clocks", "ok", "one node, one clock")
    name, (most, unsure) = max(offsets.items(), key=lambda item: abs(item[1][0]))
    text = f"{len(offsets)} nodes; {name} differs most, by {abs(most):.3f} s (± {unsure:.3f})"
    if abs(most) - unsure > SKEW:
        return Finding("clocks", "warning", text, "Run a time service (chrony, systemd-timesyncd) on every node.")
    return Finding("clocks", "ok", text)


def nearest_folder(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if _exists(folder))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # it lies in a folder that one may not enter
        return False


def check_folder(path: str | Path) -> Finding:
    """Whether a folder can be made and written; nothing of it stays."""
    path, check = Path(path), f"folder {path}"
    there = nearest_folder(path)
    try:
        with tempfile.TemporaryDirectory(prefix=".hse-dist-", dir=there) as folder:
            written = Path(folder) / "written"
            written.write_bytes(b"x")
            written.rename(Path(folder) / "renamed")
    except OSError as error:
        return Finding(check, "failed", f"cannot be written: {error}", "Choose another folder, or mend its rights.")
    return Finding(check, "ok", "can be written" if there == path.absolute() else f"can be made in {there}")


def examine_machine(folders: list[str]) -> list[Finding]:
    """The folders, the disks that they are on, and memory."""
    found = [check_folder(folder) for folder in folders]
    free = {shutil.disk_usage(place).free: place for place in map(nearest_folder, map(Path, folders)) if place.is_dir()}
    mend = "Free some, or choose folders elsewhere (run.folder, data.folder; Ray's are under RAY_TMPDIR)."
    if free:  # else no folder can be made, as it says above
        found.append(judge_room("disk", f" at {free[min(free)]}", min(free), DISK, mend))
    mend = "Use fewer workers on this machine, or end other processes."
    found.append(judge_room("memory", "", available_memory(), MEMORY, mend))
    shared = Path("/dev/shm")
    if shared.is_dir():
        mend = "Give the container more (docker run --shm-size, an emptyDir of medium Memory)."
        found.append(judge_room("shared memory", f" at {shared}", shutil.disk_usage(shared).free, SHARED, mend))
    return found
