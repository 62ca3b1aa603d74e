"""Training rank by rank, as the driver would have it, and training that is broken off.

In: a configuration on prepared data, in real ranks or in this process. Out: summaries, or `Interrupted`, at a step of
choice, once that is done and before anything is written about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hse_dist.config import Config
from hse_dist.data.prepared import Prepared
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.sparsity.schedule import live_counts
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.start import make_start
from hse_dist.train.driver import train
from hse_dist.train.step import Trainer
from hse_dist.train.teacher import check_teacher
from hse_dist.train.worker import train_worker


class Interrupted(Exception):
    """What stops a run in tests."""


@contextmanager
def interrupting(after: int | None) -> Iterator[None]:
    """For the block, let every run of this process raise `Interrupted` after its step `after`; None: none."""
    step = Trainer.step

    def stop(self: Trainer, batch: Any, number: int, *following: Any) -> Any:
        result = step(self, batch, number, *following)
        if number == after:
            raise Interrupted
        return result

    Trainer.step = stop  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Trainer.step = step  # type: ignore[method-assign]


def stopped(config: Config, after: int) -> None:
    """Train until the step `after` is done.

    Raises:
        AssertionError: the run came to its end.
    """
    try:
        with interrupting(after):
            train(config)
    except Interrupted:
        return
    raise AssertionError(f"the run has no step {after}")


def begin(config: Config) -> dict[str, Any]:
    """What the driver does before the workers; the server's state."""
    folder, prepared = RunFolder(config), Prepared(config.data.folder)
    folder.claim()
    check_teacher(config, prepared)
    server = SparsityServer(config.sparsity, 0, 1)
    start = make_start(config, prepared, folder.start, server.new_cut)
    server.record_start(config.sparsity.start, live_counts(config, start.live_entries, start.rows))
    return server.state_dict()


def train_on(ranks: Ranks, config: Config, state: dict[str, Any], after: int | None = None) -> Any:
    """The worker of one rank; all ranks stop in step `after`, and say "interrupted"."""
    with interrupting(after):
        try:
            return train_worker(ranks, {"config": config, "server": None, "server_state": state})
        except Interrupted:
            return "interrupted"
