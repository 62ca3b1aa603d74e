"""What TorchRec's own planner says of the same table on machines that are not here.

In: a `Shape`. Out: its answer: bytes of a worker's shards, and its estimate of their milliseconds a step; or its
refusal. It knows the shards and their optimizer, and neither offsets nor what the rest of a step takes: `sizes.py` adds
these. Nothing is allocated: collections are on `meta`, and row lengths are never made.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import torch
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.stats import NoopEmbeddingStats
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError

from hse_dist.config import TrainSettings
from hse_dist.plan.shape import Shape
from hse_dist.plan.sizes import RESERVE
from hse_dist.tables.collection import PackedCollection
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.plan import make_sharders
from hse_dist.tables.shard_memory import ShardMemory

MACHINE = 8
"""Workers of a machine, at most."""


class CountedLayout(RowLayout):
    """Rows of which only the number of chunks is known."""

    @classmethod
    def of(cls, shape: Shape) -> CountedLayout:
        """The layout of a shape; its offsets are on `meta`."""
        layout = cls(torch.empty(shape.items + 1, device="meta", dtype=torch.int64), shape.chunk_width)
        object.__setattr__(layout, "_chunks", shape.chunks)
        return layout

    @property
    def chunks(self) -> int:
        return int(getattr(self, "_chunks"))  # noqa: B009 (a frozen dataclass has no such field)


@dataclass(frozen=True)
class Answer:
    """What the planner says: bytes of the fullest worker and milliseconds by its own estimate; or why not."""

    bytes_per_worker: int | None
    milliseconds: float | None
    refusal: str = ""


def ask_planner(shape: Shape) -> Answer:
    """A row-wise plan of values, columns and gains by the planner that a run uses."""
    collection = PackedCollection(CountedLayout.of(shape), shape.dims, with_gains=shape.gains)
    tables = ["item_values", "item_columns", *(["item_gains"] if shape.gains else [])]
    ids = shape.candidates * shape.chunks_a_row
    memory = ShardMemory(shape.kernel, shape.cache_load_factor)
    constraint = ParameterConstraints(
        sharding_types=["row_wise"], **memory.constraints(), pooling_factors=[ids], num_poolings=[1.0]
    )
    logging.getLogger("torchrec.distributed.planner").setLevel(logging.ERROR)
    planner = EmbeddingShardingPlanner(
        topology=make_topology(shape),
        batch_size=1,
        constraints=dict.fromkeys(tables, constraint),
        storage_reservation=FixedPercentageStorageReservation(RESERVE),
        stats=NoopEmbeddingStats(),
        debug=False,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            planner.plan(collection, make_sharders(TrainSettings.model_validate({"optimizer": shape.optimizer})))
    except PlannerError as error:
        return Answer(None, None, str(error).strip().splitlines()[0][:200])
    options = planner._best_plan or []
    cuda = shape.device == "cuda"
    held = [sum(_bytes(option.shards[rank].storage, cuda) for option in options) for rank in range(shape.workers)]
    return Answer(max(held), max(option.shards[0].perf.total for option in options))


def make_topology(shape: Shape) -> Topology:
    """The machines; bandwidths are bytes a millisecond there."""
    cuda = shape.device == "cuda"
    return Topology(
        world_size=shape.workers,
        local_world_size=next(size for size in range(min(MACHINE, shape.workers), 0, -1) if shape.workers % size == 0),
        compute_device=shape.device,
        hbm_cap=shape.memory if cuda else None,
        ddr_cap=shape.host_memory if cuda else shape.memory,
        inter_host_bw=shape.network / 1000,
    )


def _bytes(storage: object, cuda: bool) -> int:
    return int(getattr(storage, "hbm" if cuda else "ddr"))
