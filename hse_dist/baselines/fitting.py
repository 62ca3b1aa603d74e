"""What every baseline is asked, what it answers, and how it is measured and tuned.

In: a `Request`. Out: an `Answer`: metrics on the split that was asked for, sizes of the model that was measured, and
what validation chose. A baseline gives models by hyperparameter; `choose` climbs their grid by validation nDCG@100
alone, and scores the split asked for once, with the model that won.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import scipy.sparse as sp
import torch

from hse_dist.errors import ConfigError, DataError, ResourceError
from hse_dist.evaluate.metrics import DEPTH, Metrics, thirds
from hse_dist.evaluate.topk import TopK, mask
from hse_dist.memory import available_memory

if TYPE_CHECKING:
    from hse_dist.baselines.factors import Factors
    from hse_dist.data.prepared import Prepared

CHOICE = "ndcg@100"
"""The validation metric that chooses hyperparameters."""

ENTRY_BYTES = 8
"""A live entry is a float32 value and a column number of four bytes."""
DIMENSION_BYTES = 4
"""A dense dimension is a float32."""

Scores = Callable[[sp.csr_matrix], np.ndarray]
"""Binary histories `[B, items]` → float32 `[B, items]`; what it says of an item of the history does not matter."""

Parameter = TypeVar("Parameter", int, float)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What `evaluate_baseline` was asked.

    Attributes:
        budget: bytes an item; None for methods that take none.
        users: users ranked at a time.
        regularization: λ of EASE and what is made of it; None: validation chooses.
        factors: where factorizations are kept; None: for this call only.
    """

    prepared: Prepared
    split: str
    budget: int | None = None
    seed: int = 0
    users: int = 512
    regularization: float | None = None
    factors: Factors | None = None

    def size(self, unit: int, name: str) -> int:
        """How many entries (of `unit` bytes) an item the budget pays for.

        Raises:
            ConfigError: not one.
        """
        if self.budget is None or self.budget < unit:
            raise ConfigError(
                f"A budget of {self.budget} bytes an item is too small for {name}: one entry takes {unit}.",
                cause="Give more bytes.",
            )
        return self.budget // unit


@dataclass(frozen=True)
class Model:
    """A fitted baseline. `bytes_per_item`: its entries × their bytes ÷ items, as they are, not as they were allowed."""

    scores: Scores
    live_entries: int
    bytes_per_item: float


@dataclass(frozen=True)
class Answer:
    """`chosen`: hyperparameters by name; `validation`: each value tried, as text → nDCG@100 (empty: none was)."""

    metrics: Metrics
    live_entries: int
    bytes_per_item: float
    chosen: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)


def need_users(prepared: Prepared, split: str) -> None:
    """Check that there is someone to rank for.

    Raises:
        DataError: the split has no users.
    """
    if not prepared.users(split):
        raise DataError(f"The split {split!r} has no users for a baseline.", cause=f"Raise data.split.{split}.")


def need_memory(what: str, needed: int, cause: str) -> None:
    """Check that so many bytes are available.

    Raises:
        ResourceError: they are not.
    """
    available = available_memory()
    if needed > available:
        raise ResourceError(
            f"{what} needs {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} are available.", cause=cause
        )


def top_lists(scores: Scores, prepared: Prepared, split: str, users: int) -> np.ndarray:
    """The best unseen items of the whole catalogue for every user of a split, int64 `[users, 100]`; -1: none."""
    inputs = prepared.matrix(split)
    tops = [np.empty((0, DEPTH), np.int64)]
    for first in range(0, inputs.shape[0], users):
        block = inputs[first : first + users]
        scored = torch.from_numpy(np.ascontiguousarray(scores(block), np.float32))
        rows = torch.from_numpy(block.indices.astype(np.int64))
        mask(scored, 0, torch.from_numpy(block.indptr.astype(np.int64)), rows)
        top = TopK(len(scored), DEPTH)
        top.update(scored, 0)
        tops.append(top.result().numpy())
    return np.concatenate(tops)


def metrics_of(top: np.ndarray, prepared: Prepared, split: str) -> Metrics:
    """The metrics of a split's top lists."""
    targets = prepared.targets(split)
    metrics = Metrics(thirds(prepared.counts()))
    order = np.arange(len(top), dtype=np.int64)
    metrics.add(top, targets.indptr.astype(np.int64), targets.indices.astype(np.int64), order)
    return metrics


def measure(scores: Scores, request: Request, split: str) -> Metrics:
    """Rank the whole catalogue for every user of a split."""
    return metrics_of(top_lists(scores, request.prepared, split, request.users), request.prepared, split)


def choose(
    request: Request, name: str, grid: Sequence[Parameter], start: int, fit: Callable[[Parameter], Model]
) -> Answer:
    """The model of the grid with the best validation nDCG@100, measured on the split asked for.

    Args:
        name: of the hyperparameter.
        start: where the climb begins; the metric is taken to have one peak along the grid.
    """
    need_users(request.prepared, "valid")
    best: dict[str, Any] = {"value": -np.inf}
    tried: dict[str, float] = {}

    def value(index: int) -> float:
        model = fit(grid[index])
        metrics = measure(model.scores, request, "valid")
        found = float(metrics.result()[CHOICE])
        logger.info("%s %g: validation %s %.4f", name, grid[index], CHOICE, found)
        tried[f"{grid[index]:g}"] = found
        if found > best["value"]:  # only the best so far is kept
            best.update(value=found, model=model, metrics=metrics)
        return found

    index = climb(value, len(grid), start)
    model: Model = best["model"]
    metrics = best["metrics"] if request.split == "valid" else measure(model.scores, request, request.split)
    return Answer(metrics, model.live_entries, model.bytes_per_item, {name: grid[index]}, tried)


def climb(value: Callable[[int], float], size: int, start: int) -> int:
    """The index `0 … size - 1` of the largest value, of values that rise to one peak and fall; each asked once."""
    known: dict[int, float] = {start: value(start)}
    best = start
    for step in (-1, 1):
        while 0 <= best + step < size and best + step not in known:
            known[best + step] = value(best + step)
            if known[best + step] <= known[best]:
                break
            best += step
    return best
