"""The process that cells are computed in.

In: cells, one at a time. Out: what became of each. A cell that dies, or that takes too long, takes its process with it
and nothing else: its outcome is a failure, and the next cell gets a new process. A process stays for the cells of one
group, so that importing and what they share is paid once, and its memory is given back when the group ends.

Processes are forked from a server that has imported the libraries and done no arithmetic, as in `worlds`.
"""

from __future__ import annotations

import logging
import multiprocessing as mp
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hse_dist.benchmark.quality.cell import compute
from hse_dist.benchmark.quality.store import FAILED, Cell

PRELOAD = ["hse_dist.train.driver", "hse_dist.evaluate.driver", "hse_dist.train.worker", "hse_dist.baselines.registry"]


class Worker:
    """Owns one process at a time; a context manager that ends it.

    Args:
        folder: of the store.
        seconds: most that a cell may take; None: any.
    """

    def __init__(self, folder: Path, seconds: float | None = None) -> None:
        self.folder, self.seconds = folder, seconds
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._group: Any = None
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def compute(self, cell: Cell) -> dict[str, Any]:
        """What became of the cell, see `cell.compute`; never raises for what happens in the process."""
        if self._process is None or self._group != cell.group or not self._process.is_alive():
            self._end()
            self._start(cell.group)
        began = time.perf_counter()
        try:
            self._pipe.send(cell)
            if not self._pipe.poll(self.seconds):
                self._end()
                error = f"The cell took longer than {self.seconds:.0f} s and was ended."
                return {"state": FAILED, "error": error, "seconds": time.perf_counter() - began}
            outcome: dict[str, Any] = self._pipe.recv()
            return outcome
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            why = " Signal 9 often means that memory ran out." if code == -9 else ""
            error = f"The process of the cell ended with code {code}.{why}"
            return {"state": FAILED, "error": error, "seconds": time.perf_counter() - began}

    def _start(self, group: Any) -> None:
        here, there = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(there, self.folder), daemon=True)
        self._process.start()
        there.close()
        self._pipe, self._group = here, group

    def _end(self) -> None:
        if self._process is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(pipe: Connection, folder: Path) -> None:
    """A process's life: compute until nobody asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asked is interrupted too, and ends this process
    logging.disable(logging.INFO)  # levels are set anew by what a cell calls
    with suppress(EOFError, OSError):  # who asked is gone
        while True:
            pipe.send(compute(folder, pipe.recv()))
