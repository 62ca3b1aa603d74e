"""Real gloo ranks for tests: one spawned process each, results in rank order.

In: a module-level function of `Ranks` and picklable arguments. Out: what each rank returned; a rank's exception is
raised here with its traceback in the text. Spawned processes import this file only, so they are cheap to start.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import traceback
from collections.abc import Callable
from queue import Empty
from typing import Any

LIMIT_SECONDS = 180.0


def run_ranks(function: Callable[..., Any], ranks: int, *arguments: Any) -> list[Any]:
    """`function(ranks, *arguments)` on a real gloo group.

    Raises:
        RuntimeError: a rank raised, died, or did not answer in time; names it.
    """
    from hse_dist.ranks import free_address

    context = mp.get_context("spawn")
    results: Any = context.Queue()
    address = free_address()
    processes = [
        context.Process(target=_rank, args=(function, rank, ranks, address, arguments, results), daemon=True)
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    answers: dict[int, Any] = {}
    try:
        while len(answers) < ranks:
            rank, answer, failure = results.get(timeout=LIMIT_SECONDS)
            if failure:
                raise RuntimeError(f"Rank {rank} of {ranks} failed:\n{failure}")
            answers[rank] = answer
    except Empty:
        missing = sorted(set(range(ranks)) - set(answers))
        raise RuntimeError(f"No answer from rank(s) {missing} within {LIMIT_SECONDS:.0f} s.") from None
    finally:
        for process in processes:
            process.join(timeout=10.0 if len(answers) == ranks else 0.1)
            if process.is_alive():
                process.kill()
    return [answers[rank] for rank in range(ranks)]


def _rank(function: Callable[..., Any], rank: int, ranks: int, address: str, arguments: tuple, results: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch

    from hse_dist.cluster import prepare_process
    from hse_dist.config import ClusterSettings
    from hse_dist.ranks import process_group

    prepare_process(ClusterSettings())
    try:
        with process_group(rank, ranks, address, torch.device("cpu"), LIMIT_SECONDS) as group:
            answer = function(group, *arguments)
        results.put((rank, answer, ""))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
