"""The first live entries of every row: made once, by ranges, written as files, read shard by shard."""

from hse_dist.sparsity.start.folder import StartFolder
from hse_dist.sparsity.start.joined import Start, open_start
from hse_dist.sparsity.start.make import make_start

__all__ = ["Start", "StartFolder", "make_start", "open_start"]
