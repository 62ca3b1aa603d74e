"""What a checkpoint is to hold, as of one moment.

In: live tensors, arrays and facts. Out: a `Snapshot` that training cannot change: copies of this rank's shards and
arrays in the host's memory, and the facts as text. That is all that training waits for when a thread does the writing.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint on this rank.

    Attributes:
        state: sharded tensors. own: this rank's arrays, perhaps of several former ranks.
        shared: arrays that all ranks have.
        facts: JSON.
    """

    step: int
    state: dict[str, Any]
    own: list[Arrays]
    shared: Arrays
    facts: bytes

    @classmethod
    def of(
        cls, state: dict[str, Any], own: list[Arrays], shared: Arrays, facts: dict[str, Any], *, copied: bool
    ) -> Snapshot:
        """The moment's content; `copied`: apart from what training goes on with."""
        text = json.dumps(facts, indent=2, sort_keys=True).encode() + b"\n"
        if copied:
            state, own, shared = copy_state(state), [_copy_arrays(part) for part in own], _copy_arrays(shared)
        return cls(int(facts["step"]), state, own, shared, text)


def _copy_arrays(arrays: Arrays) -> Arrays:
    return {name: np.array(part) for name, part in arrays.items()}


def copy_state(state: Any) -> Any:
    """A state dictionary whose tensors are copies in the host's memory."""
    if isinstance(state, dict):
        return {key: copy_state(part) for key, part in state.items()}
    if isinstance(state, ShardedTensor):
        return _copy_sharded(state)
    return state.detach().to("cpu", copy=True) if isinstance(state, torch.Tensor) else copy.deepcopy(state)


def _copy_sharded(tensor: ShardedTensor) -> ShardedTensor:
    metadata = copy.deepcopy(tensor.metadata())
    for part in metadata.shards_metadata:
        part.placement._device = torch.device("cpu")  # type: ignore[union-attr]
    by_offset = {tuple(part.shard_offsets): part for part in metadata.shards_metadata}
    shards = [
        Shard(shard.tensor.detach().to("cpu", copy=True), by_offset[tuple(shard.metadata.shard_offsets)])
        for shard in tensor.local_shards()
    ]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        shards, sharded_tensor_metadata=metadata, process_group=tensor._process_group
    )
