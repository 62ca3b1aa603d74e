"""One way to run independent pieces of work: as Ray tasks where Ray runs, else one after the other in this process.

In: a picklable function and a list of its arguments. Out: the results in that order. A piece's `HseError` reaches the
caller as it was raised; every other exception becomes a `TrainingError` with the piece's own words. Once one piece has
failed, or the wait was broken off, nobody wants the others: they are ended before the exception goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hse_dist.errors import HseError, MissingRanksError, TrainingError

Argument = TypeVar("Argument")
Result = TypeVar("Result")

SECONDS_TO_END = 10.0
"""Wait for tasks that were told to end."""


def ray_is_running() -> bool:
    """Whether this process is connected to a Ray cluster; never imports Ray by itself."""
    import sys

    ray = sys.modules.get("ray")
    return bool(ray is not None and ray.is_initialized())


def map_tasks(
    function: Callable[[Argument], Result],
    arguments: Sequence[Argument],
    *,
    at_a_time: int,
    label: str,
    timeout_seconds: float = 3600.0,
) -> list[Result]:
    """`[function(a) for a in arguments]`, at most `at_a_time` Ray tasks in flight, one core each.

    Raises:
        HseError: a piece raised it.
        MissingRanksError: no piece finished for `timeout_seconds`; names those that were under way.
        TrainingError: a piece raised something else, or its process died.
    """
    if not ray_is_running():
        return [function(argument) for argument in arguments]
    import ray

    remote, shared = ray.remote(num_cpus=1)(_call), ray.put(function)  # Ray takes functions only, not partial ones
    results: dict[int, Result] = {}
    running: dict[Any, int] = {}
    waiting = list(range(len(arguments)))[::-1]
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                index = waiting.pop()
                running[remote.remote(shared, arguments[index])] = index
            done, _ = ray.wait(list(running), num_returns=1, timeout=timeout_seconds)
            if not done:
                names = ", ".join(f"{label} {i}" for i in sorted(running.values()))
                raise MissingRanksError(
                    f"No {label} task finished within {timeout_seconds:.0f} s.", cause=f"Waiting for {names}."
                )
            index = running.pop(done[0])
            results[index] = _result(done[0], f"{label} {index}")
    except BaseException:
        _end(list(running))
        raise
    return [results[index] for index in range(len(arguments))]


def _end(references: list[Any]) -> None:
    """Kill the tasks; they must not go on to write into folders that the caller removes."""
    import ray

    for reference in references:
        ray.cancel(reference, force=True)
    if references:
        ray.wait(references, num_returns=len(references), timeout=SECONDS_TO_END)


def _call(function: Callable[[Argument], Result], argument: Argument) -> Result:
    return function(argument)


def _result(reference: Any, name: str) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, HseError):
            raise error.cause from None
        raise TrainingError(f"The task {name} failed: {error.cause!r}.") from error
    except ray.exceptions.RayError as error:
        raise TrainingError(f"The task {name} died: {error}.") from error
