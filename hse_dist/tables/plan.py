"""Placement: TorchRec's planner decides, with what this project needs held fixed.

In: an unsharded collection and the ranks. Out: a `ShardingPlan` in which columns lie exactly where their values lie, so
that a rank can rewire the rows that it owns without asking for their columns.
"""

from __future__ import annotations

import copy
import os
import warnings
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec import EmbeddingCollection
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.stats import NoopEmbeddingStats
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
from torchrec.distributed.types import ShardingPlan

from hse_dist.config import TrainSettings
from hse_dist.errors import PlanError
from hse_dist.memory import available_memory
from hse_dist.ranks import Ranks
from hse_dist.tables.codecs import Registry
from hse_dist.tables.collection import ColumnCollection, GainCollection, PackedCollection
from hse_dist.tables.shard_memory import ShardMemory

OPTIMIZERS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
}


class ColumnSharder(EmbeddingCollectionSharder):
    """Shards column numbers: no optimizer state, and codecs of their own."""

    @property
    def module_type(self) -> type[nn.Module]:
        return ColumnCollection


class GainSharder(EmbeddingCollectionSharder):
    """Shards gains, with their own rate."""

    @property
    def module_type(self) -> type[nn.Module]:
        return GainCollection


def make_sharders(
    train: TrainSettings, values: Registry | None = None, columns: Registry | None = None
) -> list[EmbeddingCollectionSharder]:
    """One sharder for each of values, columns and gains, with their fused optimizers and, where given, codecs."""
    optimizer = OPTIMIZERS[train.optimizer]
    still = {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": 0.0}
    return [
        EmbeddingCollectionSharder({"optimizer": optimizer, "learning_rate": train.learning_rate}, values),
        ColumnSharder(still, columns),
        GainSharder(fused_params={"optimizer": optimizer, "learning_rate": train.gain_learning_rate}),
    ]


def make_plan(module: nn.Module, sharders: list[Any], ranks: Ranks, sharding: str, memory: ShardMemory) -> ShardingPlan:
    """The planner's placement of all tables of `module` under `sharding` ("row_wise" or "table_wise").

    Raises:
        PlanError: the planner finds no placement, or a rank would have no row of a row-wise table.
    """
    parts = [part for part in module.children() if isinstance(part, EmbeddingCollection)]
    tables = [config.name for part in parts for config in part.embedding_configs()]
    constraint = ParameterConstraints(sharding_types=[sharding], **memory.constraints())
    planner = EmbeddingShardingPlanner(
        topology=make_topology(ranks),
        constraints=dict.fromkeys(tables, constraint),
        storage_reservation=FixedPercentageStorageReservation(0.15),
        stats=NoopEmbeddingStats(),
        debug=False,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            plan = planner.collective_plan(module, sharders, dist.group.WORLD)
    except PlannerError as error:
        raise PlanError(
            f"TorchRec finds no placement for {', '.join(tables)} on {ranks.size} rank(s): {error}",
            cause="Use more workers, or fewer live entries a row.",
            setting="tables.item.sharding",
            value=sharding,
        ) from error
    _check_shards(plan, ranks, sharding)
    if isinstance(module, PackedCollection):
        placement = copy.deepcopy(plan.plan["values"]["item_values"])
        for shard in placement.sharding_spec.shards:
            shard.shard_sizes[1] = module.stored
        plan.plan["columns"]["item_columns"] = placement
    return plan


def make_topology(ranks: Ranks) -> Topology:
    """The machines as the planner sees them; it runs on rank 0, so the others are taken to be like that one."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
    cuda = ranks.device.type == "cuda"
    return Topology(
        world_size=ranks.size,
        local_world_size=local,
        compute_device=ranks.device.type,
        hbm_cap=torch.cuda.get_device_properties(local_device(ranks.device)).total_memory if cuda else None,
        ddr_cap=available_memory() // local,
    )


def _check_shards(plan: ShardingPlan, ranks: Ranks, sharding: str) -> None:
    """Refuse shards without rows, on which TorchRec fails later and says something else.

    Row-wise shards are of ⌈rows / ranks⌉ rows, so that few rows may all lie on the first ranks.
    """
    for collection in plan.plan.values():
        for name, parameter in collection.items():
            shards = parameter.sharding_spec.shards
            if any(shard.shard_sizes[0] == 0 for shard in shards):
                rows = sum(shard.shard_sizes[0] for shard in shards)
                raise PlanError(
                    f"The {rows} rows of {name} leave a rank of {ranks.size} without any.",
                    cause="Use fewer workers, or table_wise.",
                    setting="tables.item.sharding",
                    value=sharding,
                )


def shard_ranges(plan: ShardingPlan, collection: str, ranks: int) -> list[tuple[int, int]]:
    """The half-open range of a collection's table rows that each rank holds, in rank order; (0, 0) for none."""
    ranges = [(0, 0)] * ranks
    (parameter,) = plan.plan[collection].values()
    for shard in parameter.sharding_spec.shards:
        first, count = shard.shard_offsets[0], shard.shard_sizes[0]
        if count:
            ranges[shard.placement.rank()] = (first, first + count)
    return ranges


def local_device(device: torch.device) -> torch.device:
    """The device of this process's shard."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
