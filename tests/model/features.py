"""A small table with features, and what the model makes of it, dense and slow, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hse_dist.config import ModelSettings
from hse_dist.data.batch import Batch, make_batch
from hse_dist.data.feature_rows import FeatureRows
from hse_dist.data.prepared import HistoryBlock
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.model.parameters import DenseParameters
from hse_dist.tables.block import SparseRows

ITEMS, AGES, IDS, GENRES, DIMS = 9, 3, 5, 4, 12
WEIGHTS = (0.5, 0.3, 0.7)


@dataclass
class Case:
    """A batch with features, its rows, and a model."""

    batch: Batch
    rows: SparseRows
    model: Autoencoder

    def dense(self) -> Tensor:
        """The looked-up rows, [R, D], a function of the rows' values."""
        owner = torch.repeat_interleave(torch.arange(len(self.rows.offsets) - 1), self.rows.offsets.diff())
        flat = owner * DIMS + self.rows.columns
        empty = torch.zeros((len(self.rows.offsets) - 1) * DIMS, dtype=self.rows.values.dtype)
        return empty.index_add(0, flat, self.rows.values).view(-1, DIMS)

    def vectors(self, dense: Tensor) -> tuple[Tensor, Tensor]:
        """User vectors [B, D] and candidates [C, D] of looked-up rows [R, D]."""
        features, unit = self.batch.features, self.model.settings.row_norm == "unit"
        assert features is not None
        rows = F.normalize(dense, dim=1) if unit else dense
        weights = torch.cat([torch.ones(features.items), self.model.parameters.weights[features.feature]])
        rows = rows * weights[:, None]
        items = [
            rows[item] + rows[features.sides[_range(features.side_offsets, item)]].sum(0)
            for item in range(features.items)
        ]
        candidates = torch.stack(items)
        if unit:
            candidates = F.normalize(candidates, dim=1)
        users = [
            candidates[self.batch.positions[_range(self.batch.offsets, user)]].sum(0)
            + rows[features.context[_range(features.context_offsets, user)]].sum(0)
            for user in range(len(self.batch.offsets) - 1)
        ]
        return torch.stack(users), candidates

    def scores(self, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, C] without what an item of a history gives itself, and histories [B, C]."""
        users, candidates = self.vectors(dense)
        gains = torch.ones(len(candidates), dtype=dense.dtype)
        if self.rows.gains is not None:
            gains = self.rows.gains[: len(candidates)]
        seen = torch.zeros(len(users), len(candidates), dtype=dense.dtype)
        for user in range(len(users)):
            seen[user, self.batch.positions[_range(self.batch.offsets, user)]] = 1.0
        return (users @ candidates.T - seen * candidates.square().sum(1)) * gains, seen

    def reference(self, dense: Tensor) -> Tensor:
        """The loss, but for BPR's."""
        scores, seen = self.scores(dense)
        if self.model.settings.loss == "cosine":
            return (2 - 2 * F.cosine_similarity(scores, seen)).mean()
        logits = scores / (self.vectors(dense)[0].norm(dim=1, keepdim=True) * self.model.parameters.temperature)
        assert self.batch.log_chances is not None
        logits = logits - self.batch.log_chances
        losses = []
        for user in range(len(seen)):
            others = logits[user][seen[user] == 0]
            hits = logits[user][seen[user] == 1]
            losses.append(
                torch.stack([torch.logsumexp(torch.cat([hit[None], others]), 0) - hit for hit in hits]).mean()
            )
        return torch.stack(losses).mean()


def make_case(seed: int, norm: str = "unit", loss: str = "cosine", *, sides: bool = True, context: bool = True) -> Case:
    """Users with ages and ids, items with up to two genres."""
    rng = np.random.default_rng(seed)
    genres = [sorted(rng.permutation(GENRES)[: rng.integers(0, 3)]) if sides else [] for _ in range(ITEMS)]
    users = ("age", "id") if context else ()
    sizes = ([AGES, IDS] if context else []) + [GENRES]
    features = FeatureRows(
        ITEMS, users, ("genre",), ITEMS + np.concatenate([[0], np.cumsum(sizes)]),
        (_ends(genres), np.concatenate([*genres, []]).astype(np.int64) + ITEMS + sum(sizes[:-1])),
    )  # fmt: skip
    histories = [sorted(rng.permutation(ITEMS)[: rng.integers(1, 5)]) for _ in range(4)]
    given = {
        "age": [rng.integers(0, AGES, 1).tolist() for _ in histories],
        "id": [rng.permutation(IDS)[: rng.integers(0, 3)].tolist() for _ in histories],
    }
    lists = {name: (_ends(lists), np.concatenate([*lists, []]).astype(np.int64)) for name, lists in given.items()}
    block = HistoryBlock(_ends(histories), np.concatenate(histories).astype(np.int64), features=lists)
    chances = np.log(rng.uniform(0.1, 1.0, ITEMS)).astype(np.float32)
    batch = make_batch(block, rows=ITEMS, negatives=3, seed=1, step=1, rank=0, features=features, log_chances=chances)
    lengths = rng.integers(1, DIMS // 2, len(batch.candidates))
    columns = np.concatenate([rng.permutation(DIMS)[:length] for length in lengths])
    values = torch.from_numpy(rng.normal(size=len(columns))).requires_grad_()
    gains = torch.from_numpy(rng.uniform(0.5, 1.5, len(lengths))).requires_grad_() if norm == "free" else None
    rows = SparseRows(torch.from_numpy(_ends(columns_of(lengths))), torch.from_numpy(columns), values, gains, DIMS)
    weights = WEIGHTS if context else WEIGHTS[2:]
    parameters = DenseParameters(weights, None if loss == "cosine" else 0.5).double()
    return Case(batch, rows, Autoencoder(ModelSettings(kind="two_tower", row_norm=norm, loss=loss), parameters))


def columns_of(lengths: np.ndarray) -> list[range]:
    """Lists of these lengths."""
    return [range(length) for length in lengths]


def _ends(lists: list) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)


def _range(offsets: Tensor, index: int) -> slice:
    return slice(int(offsets[index]), int(offsets[index + 1]))
