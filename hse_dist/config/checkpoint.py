"""Settings of checkpoints: where they lie, how many stay, and whether training waits for them."""

from __future__ import annotations

from pydantic import PositiveInt

from hse_dist.config.base import SCHEMES, Settings


class CheckpointSettings(Settings):
    keep: PositiveInt = 2
    """Newest checkpoints kept beside the best one."""
    asynchronous: bool = True
    """Training waits only until each rank has a copy of its shard in memory, which a thread writes; takes the memory of
    one more shard of values, columns and accumulators."""
    folder: str | None = None
    """Where checkpoints lie: a path or a URI of pyarrow.fs or fsspec that all ranks reach, of this run alone; without
    it `checkpoints` in the run folder."""
    schemes: tuple[str, ...] = SCHEMES
    """Schemes of a URI that may be opened as `folder`."""
