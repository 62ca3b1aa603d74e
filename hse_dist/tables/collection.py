"""Tables as plain modules on TorchRec's `EmbeddingCollection`; sharding is somebody else's business.

In: candidate rows int64 [C], asked for. Out: `SparseRows` or `DenseRows`, when they are there.

A packed table is three collections: `values` [chunks, w] (trained by the fused optimizer), `columns` [chunks, w] (the
dimension of each value as a float32 integer, exact below 2^24, changed only by a rewire; of blocks of b columns one
number a block, `numbers.py`) and `gains` [rows, 4]. Columns
are their own module class because `DistributedModelParallel` picks the sharder, and with it the codecs, by module type,
and a codec for values would corrupt them. A gain's row is (magnitude, sign, 0, 0): fbgemm wants a multiple of four, and
the sign in its own slot never gets a gradient, so that it stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig

from hse_dist.ranks import Ranks
from hse_dist.tables.block import DenseRows, SparseRows
from hse_dist.tables.codecs import Codec, Columns, HalfValues, StrongestGradients
from hse_dist.tables.feedback import FeedBack, Residuals
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.live import live_entries
from hse_dist.tables.numbers import columns_of, stored_numbers
from hse_dist.tables.route import FEATURE, Reading, Route

GAIN_WIDTH = 4
MIN_GAIN = 1e-3
"""Smallest magnitude of a gain in the forward pass."""


class ColumnCollection(EmbeddingCollection):
    """Column numbers; never trained."""


def _collection(kind: type[EmbeddingCollection], name: str, rows: int, width: int) -> EmbeddingCollection:
    table = EmbeddingConfig(name=name, num_embeddings=rows, embedding_dim=width, feature_names=[FEATURE])
    # on `meta`: the full table exists nowhere, each rank makes its own shard
    return kind(tables=[table], device=torch.device("meta"))


class GainCollection(EmbeddingCollection):
    """Gains; a type of its own for its own learning rate."""


@dataclass(frozen=True)
class Wire:
    """What a packed table's chunks look like between ranks, and what this rank still owes of its gradients."""

    ranks: Ranks
    columns: Columns
    values: Codec
    gradients: StrongestGradients
    residuals: Residuals | None


@dataclass(frozen=True)
class Asked:
    """Rows that were asked for: their chunks and gains are on their way.

    Attributes:
        bounds: int64 [C + 1], the chunks of each row among those asked for.
    """

    bounds: Tensor
    chunks: Route
    gains: Route | None

    def advance(self) -> None:
        """Send the ids, once the ranks know how many to expect."""
        for route in (self.chunks, self.gains):
            if route is not None:
                route.advance()


class PackedCollection(nn.Module):
    """Rows of live entries. Its methods are for the sharded module, and collective; `wire` is set after sharding.

    Args:
        layout: where each row's chunks lie.
        dims: D, also the code of a free slot (of blocks D / b).
        with_gains: whether rows have a gain.
        block: b, adjacent columns that are live together.
    """

    wire: Wire

    def __init__(self, layout: RowLayout, dims: int, *, with_gains: bool, block: int = 1) -> None:
        super().__init__()
        self.layout, self.dims, self.block = layout, dims, block
        self.stored = stored_numbers(layout.width, block)
        self.values = _collection(EmbeddingCollection, "item_values", layout.chunks, layout.width)
        self.columns = _collection(ColumnCollection, "item_columns", layout.chunks, self.stored)
        self.gains = _collection(GainCollection, "item_gains", layout.rows, GAIN_WIDTH) if with_gains else None

    def ask(self, rows: Tensor) -> Asked:
        """Send for rows int64 [C]; no row may come twice."""
        chunk_ids, bounds = self.layout.chunks_of(rows)
        return Asked(
            bounds,
            self._route(self.values, chunk_ids, self.layout.chunks),
            self._route(self.gains, rows, self.layout.rows) if self.gains is not None else None,
        )

    def forward(self, asked: Asked) -> SparseRows:
        """The rows that were asked for."""
        wire, width = self.wire, self.layout.width
        if isinstance(wire.values, HalfValues):
            wire.values.paused = not torch.is_grad_enabled()
        with torch.no_grad():
            numbers_ns = asked.chunks.read(Reading(self.columns, "columns", self.stored, wire.columns, Codec()))
            columns_nw = columns_of(numbers_ns, width, self.block)
        values_nw = asked.chunks.read(Reading(self.values, "values", width, wire.values, wire.gradients))
        if wire.residuals is not None and torch.is_grad_enabled():
            values_nw = FeedBack.apply(values_nw, asked.chunks.ids, columns_nw, wire.residuals)
        values, columns, ends = live_entries(values_nw, columns_nw, self.dims)
        return SparseRows(
            offsets=ends[asked.bounds],
            columns=columns,
            values=values,
            gains=self._gains(asked.gains) if asked.gains is not None else None,
            dims=self.dims,
        )

    def gains_of(self, rows: Tensor) -> Tensor:
        """The gains of `rows`, float32 [C]: sign × magnitude, at least `MIN_GAIN` in size."""
        return self._gains(self._route(self.gains, rows, self.layout.rows))

    def _route(self, collection: Any, ids: Tensor, count: int) -> Route:
        return Route(collection, ids, count, self.wire.ranks)

    def _gains(self, route: Route) -> Tensor:
        stored = route.read(Reading(self.gains, "gains", GAIN_WIDTH, Codec(), Codec()))
        magnitude, sign = stored[:, 0], stored[:, 1]
        # straight through: the gradient of a magnitude below the limit still reaches it
        magnitude = magnitude + (magnitude.clamp(min=MIN_GAIN) - magnitude).detach()
        return magnitude * sign.detach()


class DenseCollection(nn.Module):
    """The baseline: dense rows [rows, D] of the same interface."""

    ranks: Ranks

    def __init__(self, rows: int, dims: int) -> None:
        super().__init__()
        self.rows, self.dims = rows, dims
        self.values = _collection(EmbeddingCollection, "item_values", rows, dims)

    def ask(self, rows: Tensor) -> Route:
        """Send for rows int64 [C]."""
        return Route(self.values, rows, self.rows, self.ranks)

    def forward(self, asked: Route) -> DenseRows:
        """The rows that were asked for."""
        return DenseRows(asked.read(Reading(self.values, "values", self.dims, Codec(), Codec())))
