"""Full-catalogue ranking of held-out users, spread over the ranks.

In: a sharded table, a model, the prepared histories. Out: `Metrics` of all users, the same on every rank. Blocks of
users go round the ranks; each rank looks the whole catalogue up in blocks of items for every block of its users, so the
largest matrix is users × items of the settings, and the number of collective calls is the same on all ranks.

Shapes: B users, L history positions, n items of a block, K columns in use.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from hse_dist.config import EvaluateSettings
from hse_dist.data.batch import item_batch, make_batch
from hse_dist.data.feature_rows import FeatureRows
from hse_dist.data.popularity import thirds
from hse_dist.data.prepared import HistoryBlock, Prepared
from hse_dist.evaluate.metrics import DEPTH, Metrics
from hse_dist.evaluate.topk import TopK, mask
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.progress import Meter
from hse_dist.ranks import Ranks
from hse_dist.tables.sharded import DenseTable, PackedTable

EMPTY = HistoryBlock(np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int64))


def rank_users(
    table: PackedTable | DenseTable,
    model: Autoencoder,
    prepared: Prepared,
    split: str,
    settings: EvaluateSettings,
    ranks: Ranks,
    meter: Meter | None = None,
    features: FeatureRows | None = None,
) -> Metrics:
    """Metrics of the users of `split` ("valid" or "test"); a collective call.

    Args:
        features: of users and items, that have rows in the table.
        meter: is told how many users there were, about, of all ranks.

    Raises:
        DataError: a held-out user has no target.
        NumericError: a score is NaN.
    """
    metrics = Metrics(thirds(prepared.counts()))
    users = prepared.users(split)
    for block, first_user in _my_blocks(prepared, split, settings.users, ranks, features):
        top = top_items(table, model, block, settings.items, features)
        targets = block.targets()
        metrics.add(top.cpu().numpy(), targets.offsets, targets.rows, first_user + np.arange(len(block)))
        if meter is not None:
            done = min(users, first_user + settings.users * ranks.size)
            meter(done / users, done)
    merged = Metrics(metrics.third)
    for part in ranks.gather(metrics):
        merged.merge(part)
    return merged


def _my_blocks(
    prepared: Prepared, split: str, users: int, ranks: Ranks, features: FeatureRows | None
) -> Iterator[tuple[HistoryBlock, int]]:
    """Every `ranks.size`-th block of users with the position of its first one; empty blocks even out the end."""
    first = count = 0
    for block in prepared.scan(split, ("rows", "target"), users, features.users if features else ()):
        if count % ranks.size == ranks.rank:
            yield block, first
        first += len(block)
        count += 1
    if count % ranks.size and ranks.rank >= count % ranks.size:
        yield EMPTY, first


@torch.no_grad()
def top_items(
    table: PackedTable | DenseTable,
    model: Autoencoder,
    block: HistoryBlock,
    items: int,
    features: FeatureRows | None = None,
) -> torch.Tensor:
    """The best items of each history without its own, int64 [B, 100]; −1 where there are fewer. A collective call.

    Args:
        items: scored at a time.
    """
    device, count = table.ranks.device, features.items if features else table.rows
    asking = make_batch(block, rows=count, negatives=0, seed=0, step=0, rank=0, features=features).to(device)
    seen, offsets = asking.candidates[asking.positions], asking.offsets
    u_kb, kept_columns = model.encode(table.lookup(asking.candidates), asking)
    top = TopK(len(block), DEPTH, device)
    for first in range(0, count, items):
        some = item_batch(first, min(first + items, count), features).to(device)
        scores = model.score_items(u_kb, kept_columns, table.lookup(some.candidates), some).t().contiguous()
        mask(scores, first, offsets, seen)
        top.update(scores, first)
    return top.result()
