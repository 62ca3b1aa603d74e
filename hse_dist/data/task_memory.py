"""What a task of `prepare` may take of memory, and what it took of memory and time.

In: `data.memory_mb`. Out: bytes for buffers, core time, and the peak that the system saw: that of resident memory above
what the process held when the task began, after Arrow's own late imports; mapped pages of files count.

Arrow's pools keep freed memory for later (14 MB of live strings held 62 MB), so a task takes its buffers from the
system's allocator, which costs no time here and gives large buffers back at once. Before it begins, it gives back what
the process holds unused.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa

from hse_dist.config import DataSettings

Argument = TypeVar("Argument")
Result = TypeVar("Result")

SELF = Path("/proc/self")
OWN_BYTES = 16 << 20
"""What a task takes beside its buffers: code that runs for the first time, a Parquet file's footer and open pages."""


def memory_bytes(settings: DataSettings) -> int:
    """Bytes for the buffers of one task."""
    setting = settings.memory_mb << 20
    return max(setting - OWN_BYTES, setting // 4)


class TaskMemory:
    """Measures the block that it surrounds.

    Attributes:
        peak: bytes, after the block; None where the system does not tell (not Linux, or it may not be asked anew).
    """

    peak: int | None = None

    def __enter__(self) -> TaskMemory:
        self._pool = pa.default_memory_pool()
        pa.set_memory_pool(pa.system_memory_pool())
        pa.array([0]).to_numpy()  # imports pandas, where it is installed: no memory of the task
        self._pool.release_unused()
        give_back()
        self._base = _resident("VmRSS:") if _forget_peak() else None
        return self

    def __exit__(self, *_: object) -> None:
        pa.set_memory_pool(self._pool)
        peak = _resident("VmHWM:")
        if self._base is not None and peak is not None:
            self.peak = max(0, peak - self._base)


class Cost(NamedTuple):
    """What a task took."""

    peak: int | None
    """Bytes; see `TaskMemory`."""
    core_seconds: float
    """Of all its process's threads."""


def measured(function: Callable[[Argument], Result]) -> Callable[[Argument], tuple[Result, Cost]]:
    """The function of a task, which then gives its cost beside its result."""

    @functools.wraps(function)
    def run(argument: Argument) -> tuple[Result, Cost]:
        with TaskMemory() as memory:
            began = time.process_time()
            result = function(argument)
            core_seconds = time.process_time() - began
        return result, Cost(memory.peak, core_seconds)

    return run


def give_back() -> None:
    """Have the C library give freed memory back to the system; other C libraries than glibc have no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _forget_peak() -> bool:
    """Whether the system counts this process's peak from now on."""
    try:
        (SELF / "clear_refs").write_text("5")
        return True
    except OSError:
        return False


def _resident(name: str) -> int | None:
    """Bytes of a line of this process's status."""
    try:
        lines = (SELF / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(name)), None)
