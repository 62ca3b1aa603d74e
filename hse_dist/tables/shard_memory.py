"""Where a GPU's shard lies: in the GPU's own memory, or in the host's, with or without a cache on the GPU.

In: settings. Out: what the planner is told; and, before anybody reads or writes a shard itself, caches that are written
back and empty. Without that a row that is in the cache would be read as it was, or what was written would be lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torchrec.distributed.types import CacheParams

from hse_dist.config import TableSettings


@dataclass(frozen=True)
class ShardMemory:
    """`tables.item.kernel` and `tables.item.cache_load_factor`."""

    kernel: str = "fused"
    cache_load_factor: float = 0.2

    @classmethod
    def of(cls, settings: TableSettings) -> ShardMemory:
        """As a table's settings say."""
        return cls(settings.kernel, settings.cache_load_factor)

    def constraints(self) -> dict[str, Any]:
        """For the planner."""
        caching = self.kernel == "fused_uvm_caching"
        cache = CacheParams(load_factor=self.cache_load_factor) if caching else None
        return {"compute_kernels": [self.kernel], "cache_params": cache}


def weights(module: nn.Module) -> dict[str, Any]:
    """The live shards of a sharded module's collections, by name, with nothing newer in a cache.

    They may be written to until the next lookup, which fills the caches again.
    """
    found = module.state_dict()  # writes caches back
    for part in module.modules():
        for lookup in getattr(part, "_lookups", ()):
            lookup.purge()
    return found
