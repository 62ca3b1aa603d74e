"""Tables as plain modules on TorchRec's `EmbeddingCollection`; sharding is somebody else's business.

In: candidate rows int64 [C]. Out: `SparseRows` or `DenseRows`.

A packed table is three collections: `values` [chunks, w] (trained by the fused optimizer), `columns` [chunks, w] (the
dimension of each value as a float32 integer, exact below 2^24, changed only by a rewire) and `gains` [rows, 4]. Columns
are their own module class because `DistributedModelParallel` picks the sharder, and with it the codecs, by module type,
and a codec for values would corrupt them. A gain's row is (magnitude, sign, 0, 0): fbgemm wants a multiple of four, and
the sign in its own slot never gets a gradient, so that it stays.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from hse_dist.tables.block import DenseRows, SparseRows
from hse_dist.tables.layout import RowLayout

FEATURE = "item"
GAIN_WIDTH = 4
MIN_GAIN = 1e-3
"""Smallest magnitude of a gain in the forward pass."""


class ColumnCollection(EmbeddingCollection):
    """Column numbers; never trained."""


def _collection(kind: type[EmbeddingCollection], name: str, rows: int, width: int) -> EmbeddingCollection:
    table = EmbeddingConfig(name=name, num_embeddings=rows, embedding_dim=width, feature_names=[FEATURE])
    # on `meta`: the full table exists nowhere, each rank makes its own shard
    return kind(tables=[table], device=torch.device("meta"))


def _lookup(collection: nn.Module, ids: Tensor) -> Tensor:
    lengths = torch.tensor([len(ids)], dtype=torch.int64, device=ids.device)
    return collection(KeyedJaggedTensor(keys=[FEATURE], values=ids, lengths=lengths))[FEATURE].values()


class PackedCollection(nn.Module):
    """Rows of live entries.

    Args:
        layout: where each row's chunks lie.
        dims: D, also the code of a free slot.
        with_gains: whether rows have a gain.
    """

    def __init__(self, layout: RowLayout, dims: int, *, with_gains: bool) -> None:
        super().__init__()
        self.layout, self.dims = layout, dims
        self.values = _collection(EmbeddingCollection, "item_values", layout.chunks, layout.width)
        self.columns = _collection(ColumnCollection, "item_columns", layout.chunks, layout.width)
        self.gains = _collection(GainCollection, "item_gains", layout.rows, GAIN_WIDTH) if with_gains else None

    def forward(self, rows: Tensor) -> SparseRows:
        chunk_ids, bounds = self.layout.chunks_of(rows)
        with torch.no_grad():
            columns_nw = _lookup(self.columns, chunk_ids)
        values_nw = _lookup(self.values, chunk_ids)
        live_nw = columns_nw < self.dims
        ends = torch.cat([bounds.new_zeros(1), live_nw.sum(1).cumsum(0)])
        entries = live_nw.flatten().nonzero().squeeze(1)
        return SparseRows(
            offsets=ends[bounds],
            columns=columns_nw.flatten().index_select(0, entries).long(),
            values=values_nw.flatten().index_select(0, entries),
            gains=self.gains_of(rows) if self.gains is not None else None,
            dims=self.dims,
        )

    def gains_of(self, rows: Tensor) -> Tensor:
        """The gains of `rows`, float32 [C]: sign × magnitude, at least `MIN_GAIN` in size."""
        assert self.gains is not None
        stored = _lookup(self.gains, rows)
        magnitude, sign = stored[:, 0], stored[:, 1]
        # straight through: the gradient of a magnitude below the limit still reaches it
        magnitude = magnitude + (magnitude.clamp(min=MIN_GAIN) - magnitude).detach()
        return magnitude * sign.detach()


class GainCollection(EmbeddingCollection):
    """Gains; a type of its own for its own learning rate."""


class DenseCollection(nn.Module):
    """The baseline: dense rows [rows, D] of the same interface."""

    def __init__(self, rows: int, dims: int) -> None:
        super().__init__()
        self.rows, self.dims = rows, dims
        self.values = _collection(EmbeddingCollection, "item_values", rows, dims)

    def forward(self, rows: Tensor) -> DenseRows:
        return DenseRows(_lookup(self.values, rows))
