"""Ranks for a benchmark: processes that stay, each with its place in a gloo group, its cores and its state.

In: a class made with `Ranks` in every process, and calls of its methods. Out: what each rank answered, in rank order.
Unlike the tests' pool, a world keeps its state between calls, so that several worlds can take turns, and its ranks may
be pinned to cores. TorchRec is imported once, by a server that all ranks of all worlds are forked from before it does
any arithmetic: importing takes seconds of a core.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

from hse_dist.errors import HseError, TrainingError

LIMIT_SECONDS = 600.0


class World:
    """A gloo group of processes, and in each an object of `kind`.

    Args:
        kind: module-level class; made as `kind(ranks, *arguments)`.
        cores: the core of each rank; None: wherever the system puts it.
        threads: of arithmetic, a rank.
        limit: seconds of every wait, for answers and between ranks.

    Raises:
        HseError: as a rank raised it.
        TrainingError: a rank failed otherwise, died, or did not answer in time; names it.
    """

    def __init__(
        self,
        kind: Callable[..., Any],
        size: int,
        *arguments: Any,
        cores: list[int] | None = None,
        threads: int = 1,
        limit: float = LIMIT_SECONDS,
    ) -> None:
        from hse_dist.ranks import free_address

        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["hse_dist.tables.sharded", "hse_dist.model.autoencoder"])
        self.size, self.limit, address = size, limit, free_address()
        self._processes, self._pipes = [], []
        for rank in range(size):
            here, there = context.Pipe()
            place = (rank, size, address, cores[rank % len(cores)] if cores else None, threads, limit)
            process = context.Process(target=_serve, args=(there, place, kind, arguments), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(kindly=kind is None)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes if process.pid is not None]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """`method(*arguments)` on every rank at once."""
        self.begin(method, *arguments)
        return self.end()

    def begin(self, method: str, *arguments: Any) -> None:
        """Ask without waiting; `end` gives the answers."""
        for rank, pipe in enumerate(self._pipes):
            try:
                pipe.send((method, arguments))
            except OSError:
                raise TrainingError(f"Rank {rank} of {self.size} died.") from None

    def end(self) -> list[Any]:
        """The answers to what was asked last."""
        waiting: dict[Any, int] = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        answers: list[Any] = [None] * self.size
        deadline = time.monotonic() + self.limit
        while waiting:
            ready = wait(list(waiting), timeout=max(deadline - time.monotonic(), 0.0))
            if not ready:
                raise TrainingError(f"No answer of rank(s) {sorted(waiting.values())} within {self.limit:.0f} s.")
            for pipe in ready:
                rank = waiting.pop(pipe)
                answers[rank] = self._answer(rank)
        return answers

    def _answer(self, rank: int) -> Any:
        try:
            answer, failure = self._pipes[rank].recv()
        except (EOFError, OSError):
            raise TrainingError(f"Rank {rank} of {self.size} died.") from None
        if isinstance(failure, HseError):
            raise failure
        if failure:
            raise TrainingError(f"Rank {rank} of {self.size} failed:\n{failure}")
        return answer

    def close(self, *, kindly: bool = True) -> None:
        """End the processes; unkindly: whatever they do."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10.0 if kindly else 0.0)
            process.kill()
            process.join()


def _serve(pipe: Connection, place: tuple, kind: Callable[..., Any], arguments: tuple) -> None:
    """A rank's life: make the object, answer until nobody asks."""
    rank, size, address, core, threads, limit = place
    if core is not None:
        os.sched_setaffinity(0, {core})
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch

    from hse_dist.cluster import prepare_process
    from hse_dist.config import ClusterSettings
    from hse_dist.ranks import process_group

    prepare_process(ClusterSettings(cpus_per_worker=threads))
    # who asked is gone, or was told what went wrong
    with (
        suppress(EOFError, OSError),
        process_group(rank, size, address, torch.device("cpu"), limit) as ranks,
    ):
        target, failure = _try(kind, ranks, *arguments)
        while True:
            method, words = pipe.recv()
            if target is None:
                pipe.send((None, failure))
            else:
                pipe.send(_try(getattr(target, method), *words))


def _try(function: Callable[..., Any], *arguments: Any) -> tuple[Any, HseError | str]:
    """What a function gave, or how it failed."""
    try:
        return function(*arguments), ""
    except HseError as error:
        return None, error
    except BaseException:
        return None, traceback.format_exc()
