"""A made-up log of any size, the same for the same settings.

In: `config.data.synthetic`. Out: Parquet files with the configured column names, which `prepare` reads like any other
log.

Items lie in clusters; a user prefers a few of them, and within a cluster popularity falls as a power of the rank. So
counts have a long tail and items of a cluster occur together: what a co-occurrence model can learn. Users are made in
blocks, each with its own generator, so that neither memory nor the content depends on how many blocks are made at a
time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hse_dist.config import ColumnNames, SyntheticSettings
from hse_dist.data.task_memory import Cost, measured
from hse_dist.progress import Meter
from hse_dist.tasks import map_tasks

BLOCK_USERS = 50_000
PIECE = 1 << 17
"""Interactions made at a time: a task of `prepare` has little memory."""
CLUSTER_ITEMS = 100
"""Items a cluster, about."""
TASTES = 3
"""Clusters that a user prefers."""
LOYALTY = 0.8
"""Share of interactions inside the preferred clusters; the rest are from the whole catalogue."""
POWER = 0.8
"""Probability of rank r is proportional to (r + 1) ** −POWER, in a cluster and over all."""
SECONDS_APART = 3600


@dataclass(frozen=True)
class _Block:
    settings: SyntheticSettings
    columns: ColumnNames
    folder: str
    index: int
    meter: str


def write(
    settings: SyntheticSettings,
    columns: ColumnNames,
    folder: Path,
    *,
    tasks: int,
    meter: Callable[[int], str] = lambda _: "",
) -> list[Cost]:
    """Write the log as one Parquet file a block of users: user and item (int64) and timestamp (int64, seconds).

    `mean_history` is the mean before duplicates are merged.

    Args:
        meter: gives the path where a task notes how far it is.

    Returns:
        What each task took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [_Block(settings, columns, str(folder), index, meter(index)) for index in range(count_blocks(settings))]
    return [cost for _, cost in map_tasks(_write_block, blocks, at_a_time=tasks, label="synthetic log")]


def count_blocks(settings: SyntheticSettings) -> int:
    """Files, and so tasks, of a log."""
    return -(-settings.users // BLOCK_USERS)


@measured
def _write_block(block: _Block) -> None:
    names = [block.columns.user, block.columns.item, block.columns.timestamp or "timestamp"]
    schema = pa.schema([(name, pa.int64()) for name in names])
    first = block.index * BLOCK_USERS
    users = min(BLOCK_USERS, block.settings.users - first)
    meter, written = Meter(block.meter), 0
    with pq.ParquetWriter(f"{block.folder}/part-{block.index:05d}.parquet", schema, compression="zstd") as writer:
        for columns in interactions(block.settings, block.index):
            writer.write_table(pa.table([pa.array(column) for column in columns], schema=schema))
            written += len(columns[0])
            meter((int(columns[0][-1]) + 1 - first) / users, written)


def interactions(settings: SyntheticSettings, block: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(users, items, timestamps), int64 arrays, of a block of users, in pieces of about `PIECE`."""
    rng = np.random.default_rng([settings.seed, block])
    first, last = block * BLOCK_USERS, min((block + 1) * BLOCK_USERS, settings.users)
    step = max(1, PIECE // settings.mean_history)
    for start in range(first, last, step):
        users = np.arange(start, min(start + step, last))
        # geometric lengths: many short histories, few long ones
        lengths = np.minimum(rng.geometric(1 / settings.mean_history, len(users)), settings.items)
        owner = np.repeat(np.arange(len(users)), lengths)
        items = _items(rng, settings, owner, len(users))
        place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        times = 1_000_000_000 + users[owner] % 86_400 + place * SECONDS_APART
        yield users[owner], items, times


def days(
    settings: SyntheticSettings, count: int, *, first: float, known: float
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The log in `count` days, (users, items, timestamps) of each: on every day there are items that are new.

    An item is born on a day that has nothing to do with its popularity; what users did with it before is left out.

    Args:
        first: share of the interactions that is of day 0. known: share of the items that are born on day 0.
    """
    blocks = [piece for block in range(count_blocks(settings)) for piece in interactions(settings, block)]
    users, items, times = (np.concatenate(part) for part in zip(*blocks, strict=True))
    rng = np.random.default_rng([settings.seed, 0xDA])
    born = np.where(rng.random(settings.items) < known, 0, rng.integers(1, count, settings.items))
    later = rng.integers(1, count, len(users))
    day = np.where(rng.random(len(users)) < first, 0, later)
    there = born[items] <= day
    return [
        (users[here], items[here], times[here] + 86_400 * 365 * number)
        for number in range(count)
        for here in [np.flatnonzero(there & (day == number))]
    ]


def _items(rng: np.random.Generator, settings: SyntheticSettings, owner: np.ndarray, users: int) -> np.ndarray:
    clusters = max(1, settings.items // CLUSTER_ITEMS)
    tastes = _ranks(rng.random((users, TASTES)), clusters)
    cluster = tastes[owner, rng.integers(0, TASTES, len(owner))]
    # cluster c holds the popularity ranks c, c + clusters, c + 2·clusters, …: every cluster has popular items
    size = (settings.items - 1 - cluster) // clusters + 1
    inside = cluster + clusters * _ranks(rng.random(len(owner)), size)
    outside = _ranks(rng.random(len(owner)), settings.items)
    rank = np.where(rng.random(len(owner)) < LOYALTY, inside, outside)
    # ids must not give the rank away: a fixed permutation, multiplication by a number prime to the catalogue's size
    factor = next(
        f for f in range(int(settings.items * 0.618) | 1, 2 * settings.items + 3) if gcd(f, settings.items) == 1
    )
    return rank * factor % settings.items


def _ranks(uniform: np.ndarray, size: np.ndarray | int) -> np.ndarray:
    """Ranks 0 … size − 1 with a power law, by inverting its continuous distribution function; int64."""
    tail = 1.0 - POWER
    ranks = ((np.asarray(size) + 1.0) ** tail * uniform + (1.0 - uniform)) ** (1.0 / tail) - 1.0
    return np.minimum(ranks.astype(np.int64), np.asarray(size) - 1)
