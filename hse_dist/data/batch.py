"""From a block of histories to what a step looks up.

In: a `HistoryBlock` and the number of uniform negatives; perhaps where the rows of features stand. Out: the distinct
candidates, and the histories as positions among them. Each row is looked up once, however often it occurs (design: one
all-to-all of distinct rows a step).

Negatives follow from (seed, step, rank) alone, so that a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hse_dist.data.feature_rows import FeatureRows
from hse_dist.data.lists import Lists
from hse_dist.data.prepared import HistoryBlock

MARKED_ROWS = 4_000_000
"""Up to so many rows a table of marks is faster than sorting; measured with 30 720 positions."""


@dataclass(frozen=True)
class Batch:
    """One rank's input of one step.

    What is looked up are C items, then X rows of users' features, then rows of items' features.
    """

    candidates: Tensor
    """int64 [C + X + …], distinct rows of the table, rising: the histories' items and the negatives; their features."""
    offsets: Tensor
    """int64 [B + 1]: history of user b is positions[offsets[b]:offsets[b + 1]]."""
    positions: Tensor
    """int64 [L], indices into `candidates`, below C."""
    features: BatchFeatures | None = None
    """None: all candidates are items."""
    log_chances: Tensor | None = None
    """float32 [C], the logarithm of the chance by which each item is a candidate; for sampled softmax."""

    @property
    def items(self) -> int:
        """C, candidates that are items."""
        return len(self.candidates) if self.features is None else self.features.items

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`: on CUDA copied from pinned memory, so that nobody waits for the copy."""
        if device.type == "cpu":
            return self
        moved: Batch = _moved(self, device)
        return moved


@dataclass(frozen=True)
class BatchFeatures:
    """What the users and the candidates of a batch have beside interactions.

    Attributes:
        items: C. context_rows: X.
        context_offsets, context: int64 [B + 1], [M]; the features of user b are the candidates
            context[context_offsets[b]:context_offsets[b + 1]].
        side_offsets, sides: int64 [C + 1], [S], the same of each item that is a candidate.
        feature: int64 [X + …], of each candidate that is no item, which feature's row it is.
    """

    items: int
    context_rows: int
    context_offsets: Tensor
    context: Tensor
    side_offsets: Tensor
    sides: Tensor
    feature: Tensor


def _moved(batch: Any, device: torch.device) -> Any:
    parts = {field.name: getattr(batch, field.name) for field in fields(batch)}
    tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    moved = {name: part.pin_memory().to(device, non_blocking=True) for name, part in tensors.items()}
    inner = {name: _moved(part, device) for name, part in parts.items() if isinstance(part, BatchFeatures)}
    return replace(batch, **moved, **inner)


def make_batch(
    block: HistoryBlock,
    *,
    rows: int,
    negatives: int,
    seed: int,
    step: int,
    rank: int,
    features: FeatureRows | None = None,
    log_chances: np.ndarray | None = None,
) -> Batch:
    """The batch of a block.

    Args:
        block: histories; an empty one gives negatives only.
        rows: items of the table.
        negatives: uniform draws from all items, with replacement, so that fewer may be new; from `rows` on, all items
            are candidates.
        seed, step, rank: key of the draws.
        features: of users and items, that are looked up too.
        log_chances: float32 [rows], see `Batch`.
    """
    items = block.rows
    if negatives >= rows:
        candidates, positions = np.arange(rows), items.copy()
    else:
        drawn = np.random.default_rng([seed, step, rank]).integers(0, rows, negatives)
        candidates, positions = _marked(items, drawn, rows) if rows <= MARKED_ROWS else _sorted(items, drawn)
    chances = None if log_chances is None else torch.from_numpy(log_chances[candidates])
    found = None
    if features is not None:
        candidates, found = _with_features(candidates, features.context(block), features)
    # copies, as the block may be a view; NumPy's, as torch would start a team of threads for the thread that calls this
    offsets = torch.from_numpy(block.offsets.copy())
    return Batch(torch.from_numpy(candidates), offsets, torch.from_numpy(positions), found, chances)


def item_batch(first: int, last: int, features: FeatureRows | None) -> Batch:
    """The items first … last − 1 as candidates, for nobody."""
    nobody = HistoryBlock(np.zeros(1, np.int64), np.zeros(0, np.int64))
    candidates, found = np.arange(first, last), None
    if features is not None:
        candidates, found = _with_features(candidates, features.context(nobody), features)
    return Batch(torch.from_numpy(candidates), torch.from_numpy(nobody.offsets), torch.from_numpy(nobody.rows), found)


def feature_batch(first: int, last: int, features: FeatureRows) -> Batch:
    """The table's rows first … last − 1, all of users' features, as candidates, for nobody."""
    rows, none, nobody = np.arange(first, last), np.zeros(0, np.int64), np.zeros(1, np.int64)
    parts = (nobody, none, nobody, none, features.feature_of(rows))
    found = BatchFeatures(0, len(rows), *(torch.from_numpy(part.astype(np.int64)) for part in parts))
    return Batch(torch.from_numpy(rows), torch.from_numpy(nobody), torch.from_numpy(none), found)


def _with_features(items: np.ndarray, context: Lists, features: FeatureRows) -> tuple[np.ndarray, BatchFeatures]:
    """The items followed by the rows of users' and of items' features, and who has which."""
    sides = features.sides_of(items)
    of_users, context_places = np.unique(context[1], return_inverse=True)
    of_items, side_places = np.unique(sides[1], return_inverse=True)
    others = np.concatenate([of_users, of_items])
    places = (context_places + len(items), side_places + len(items) + len(of_users))
    parts = (context[0], places[0], sides[0], places[1], features.feature_of(others))
    tensors = (torch.from_numpy(part.astype(np.int64)) for part in parts)
    return np.concatenate([items, others]), BatchFeatures(len(items), len(of_users), *tensors)


def log_chances(counts: np.ndarray, users: int, batch_size: int, negatives: int) -> np.ndarray:
    """The logarithm of the chance by which each item is a candidate of a batch, float32 [items]: for log-Q correction
    (Yi et al., RecSys 2019), here of the candidates that all users of a batch share.

    Args:
        counts: int64 [items], how many of the `users` that train have the item.
    """
    items = len(counts)
    if negatives >= items:
        return np.zeros(items, np.float32)
    with np.errstate(divide="ignore"):
        absent = batch_size * np.log1p(-np.minimum(counts / max(users, 1), 1.0)) + negatives * np.log1p(-1.0 / items)
    return np.log(np.maximum(-np.expm1(absent), 1e-30)).astype(np.float32)


def _marked(items: np.ndarray, drawn: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    marks = np.zeros(rows, bool)
    marks[items] = True
    marks[drawn] = True
    candidates = np.flatnonzero(marks)
    place = np.empty(rows, np.int64)
    place[candidates] = np.arange(len(candidates))
    return candidates, place[items]


def _sorted(items: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    candidates, inverse = np.unique(np.concatenate([items, drawn]), return_inverse=True)
    return candidates, inverse[: len(items)]
