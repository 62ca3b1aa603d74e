"""What ranks tell each other about a checkpoint: results, and who failed.

In: a piece of work on each rank. Out: the results of all, or one error that every rank raises, so that nobody waits for
a rank that has given up. Exchanges have a group of their own, so that a thread that saves cannot get between those of
training, and end at its limit.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from hse_dist.errors import HseError, MissingRanksError, RunFolderError
from hse_dist.ranks import Ranks

Result = TypeVar("Result")


class Gathers(Protocol):
    """What is asked of ranks here; `Ranks` does, too."""

    rank: int
    size: int

    def gather(self, value: Any) -> list[Any]:
        """Every rank's small object, in rank order, on every rank."""


class Group:
    """All ranks, over gloo, in a group of their own; making it is a collective call."""

    def __init__(self, ranks: Ranks, timeout_seconds: float) -> None:
        self.rank, self.size = ranks.rank, ranks.size
        self.process_group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's small object, in rank order, on every rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.process_group)
        return values


def together(ranks: Gathers, what: str, work: Callable[[], Result]) -> list[Result]:
    """`work()` on every rank; what each gave.

    Args:
        what: was not possible if it fails, a sentence without its full stop.

    Raises:
        HseError: the first rank's that raised one, on all ranks.
        RunFolderError: a rank failed otherwise; says which, and how.
        MissingRanksError: not every rank answered within the group's limit.
    """
    result, failure = None, None
    try:
        result = work()
    except HseError as error:
        failure = error
    # torch's is no subclass of Exception
    except (Exception, CheckpointException) as error:
        failure = RunFolderError(f"{what}: {words_of(error)}", cause=f"It was rank {ranks.rank} that failed.")
    try:
        answers = ranks.gather((result, failure))
    except RuntimeError as error:
        if failure is not None:
            raise failure from None
        raise MissingRanksError(f"{what}: not every rank answered.", cause=str(error)) from None
    failures = [error for _, error in answers if error is not None]
    if failures:
        raise failures[0]
    return [answer for answer, _ in answers]


def words_of(error: BaseException) -> str:
    """One sentence; of torch's, which has a traceback a rank, the failures alone."""
    if isinstance(error, CheckpointException):
        parts = {str(failure[0]) or type(failure[0]).__name__: rank for rank, failure in error.failures.items()}
        return "; ".join(f"rank {rank}: {text}" for text, rank in parts.items()).rstrip(".") + "."
    return f"{error or type(error).__name__}.".replace("..", ".")
