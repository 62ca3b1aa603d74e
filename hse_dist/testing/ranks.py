"""Real gloo ranks for tests, from a pool of processes that are started once.

In: a module-level function of `Ranks` and picklable arguments. Out: what each rank returned, in rank order; a rank's
exception is raised here with its traceback in the text. Importing TorchRec takes seconds and a process group takes
milliseconds, so the processes stay and every call gets a group of its own. One rank runs in the caller's process, as
it does in a run without Ray.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing as mp
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

LIMIT_SECONDS = 180.0
MOST_RANKS = 4


def run_ranks(function: Callable[..., Any], ranks: int, *arguments: Any, device: str = "cpu") -> list[Any]:
    """`function(ranks, *arguments)` on a real group: gloo, or nccl of one rank on "cuda".

    Raises:
        RuntimeError: a rank raised, died, or did not answer in time; names it. (With one rank its own exception.)
    """
    from hse_dist.ranks import free_address

    address = free_address()
    if ranks == 1:
        return [_call(function, 0, 1, address, arguments, device)]
    if device != "cpu":
        raise ValueError(f"{ranks} ranks were asked for on {device}, there is one")
    return _POOL.run(function, ranks, address, arguments)


def _call(
    function: Callable[..., Any], rank: int, ranks: int, address: str, arguments: tuple, device: str = "cpu"
) -> Any:
    import torch

    from hse_dist.cluster import prepare_process
    from hse_dist.config import ClusterSettings
    from hse_dist.ranks import process_group

    prepare_process(ClusterSettings())
    try:
        with process_group(rank, ranks, address, torch.device(device), LIMIT_SECONDS) as group:
            return function(group, *arguments)
    finally:
        gc.collect()  # tables refer to themselves, and must go before the next group comes


class _Pool:
    """Processes that wait for work; rank r of every call is process r."""

    def __init__(self) -> None:
        self._workers: list[tuple[Any, Connection]] = []

    def run(self, function: Callable[..., Any], ranks: int, address: str, arguments: tuple) -> list[Any]:
        if ranks > MOST_RANKS:
            raise ValueError(f"{ranks} ranks were asked for, there are {MOST_RANKS}")
        if not self._workers:
            self._start()
        waiting: dict[Any, int] = {}
        for rank, (_, pipe) in enumerate(self._workers[:ranks]):
            pipe.send((function, rank, ranks, address, arguments))
            waiting[pipe] = rank
        answers: dict[int, Any] = {}
        failures: list[str] = []
        deadline = time.monotonic() + LIMIT_SECONDS
        while waiting:
            ready = wait(list(waiting), timeout=max(deadline - time.monotonic(), 0.0))
            if not ready:
                missing = sorted(waiting.values())
                self.close()
                if failures:
                    raise RuntimeError(failures[0])  # the others waited for this one
                raise RuntimeError(f"No answer from rank(s) {missing} of {ranks} within {LIMIT_SECONDS:.0f} s.")
            for rank in [waiting.pop(pipe) for pipe in ready]:
                try:
                    answers[rank], failure = self._workers[rank][1].recv()
                except EOFError:
                    self.close()
                    raise RuntimeError(f"Rank {rank} of {ranks} died.") from None
                if failure:
                    failures.append(f"Rank {rank} of {ranks} failed:\n{failure}")
        if failures:
            raise RuntimeError(failures[0])  # in time the first: what the others say follows from it
        return [answers[rank] for rank in range(ranks)]

    def _start(self) -> None:
        from hse_dist.ranks import free_address

        context = mp.get_context("spawn")
        for _ in range(MOST_RANKS):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            there.close()
            self._workers.append((process, here))
        self.run(_meet, MOST_RANKS, free_address(), ())

    def close(self) -> None:
        """End all processes; the next call starts new ones."""
        for process, pipe in self._workers:
            pipe.close()
            process.kill()
            process.join()
        self._workers = []


def _serve(pipe: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while True:
        try:
            function, rank, ranks, address, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (_call(function, rank, ranks, address, arguments), "")
        except BaseException:
            answer = (None, traceback.format_exc())
        pipe.send(answer)


def _meet(ranks: Any) -> None:
    """TorchRec's first model of a process asks rank 0 for a flag, later ones do not: here all ask together."""
    import torch.distributed as dist
    from torchrec.distributed.collective_utils import init_collective_validation

    init_collective_validation(dist.group.WORLD)


_POOL = _Pool()
atexit.register(_POOL.close)
