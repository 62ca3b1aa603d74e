"""Sparse gradients for a model's dense parameters: a communication hook of DistributedDataParallel.

In: a module whose parameters every rank holds, and a share. Out: the same module under DDP, whose ranks send only the
strongest ⌈share · n⌉ entries of each bucket of n gradients; what stays behind is added to the rank's next gradient
(error feedback), so that over the steps nothing is lost.

The sum is taken in the order of the ranks, so that all ranks compute the same bits. DDP has one bucket in its first
backward pass and forms others after that, so what stays behind is kept by parameter. But which entries are strong
depends on the bucket: a resumed run equals an uninterrupted one bit by bit only where one bucket holds all gradients.
Run on gloo only: no machine with a GPU was at hand.

Embedding tables do not come this way: TorchRec shards them, and their gradients go through codecs.
"""

# no `from __future__ import annotations` here: DDP compares the hook's annotations with types

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hse_dist.errors import RunFolderError


class TopKState:
    """What the hook of one rank knows from one step to the next.

    Args:
        module: whose parameters are trained, the same on all ranks.
        share: of a bucket's entries that is sent, above 0 and at most 1.
        group: the ranks; the default group without one.
    """

    def __init__(self, module: nn.Module, share: float, group: dist.ProcessGroup | None = None) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share is {share}, it must be above 0 and at most 1")
        self.share, self.group = share, group
        trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._names = {id(parameter): name for name, parameter in trained}
        self._left = {name: torch.zeros_like(parameter) for name, parameter in trained}

    def left(self, parameter: Tensor) -> Tensor:
        """What of the gradients of `parameter` this rank has not sent yet; of its shape."""
        return self._left[self._names[id(parameter)]]

    def state_dict(self) -> dict[str, np.ndarray]:
        """What this rank has not sent, by parameter, as its part of the mean over ranks."""
        size = dist.get_world_size(self.group)
        return {name: (left.float() / size).cpu().numpy() for name, left in self._left.items()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Add what `state_dict()` of a rank gave; any number of ranks may take up what others left, each state once.

        Raises:
            RunFolderError: the state is of other parameters.
        """
        shapes = {name: tuple(left.shape) for name, left in self._left.items()}
        if shapes != {name: left.shape for name, left in state.items()}:
            raise RunFolderError("The unsent gradients of a checkpoint are of another model's parameters.")
        size = dist.get_world_size(self.group)
        for name, left in self._left.items():
            left += torch.from_numpy(state[name]).to(left) * size


def top_k_hook(state: TopKState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The mean over ranks of the strongest entries of `bucket`; keeps the others in `state`."""
    gradient, parts = bucket.buffer(), list(zip(bucket.gradients(), bucket.parameters(), strict=True))
    for part, parameter in parts:
        part += state.left(parameter)
    count = math.ceil(state.share * len(gradient))
    places = gradient.abs().topk(count, sorted=False).indices
    message = torch.cat([places.int().view(torch.uint8), gradient[places].view(torch.uint8)])
    gradient[places] = 0
    for part, parameter in parts:
        state.left(parameter).copy_(part)
    size = dist.get_world_size(state.group)
    received = message.new_empty(size * len(message))
    work: Any = dist.all_gather_single(received, message, group=state.group, async_op=True)

    def add_up(_: Any) -> Tensor:
        gradient.zero_()
        for sent in received.view(size, -1):
            # clones, as numbers must begin where their type may; places of a rank are distinct: no two writes meet
            there = sent[: 4 * count].clone().view(torch.int32).long()
            gradient[there] += sent[4 * count :].clone().view(gradient.dtype)
        return gradient.div_(size)

    return work.get_future().then(add_up)


def data_parallel(
    module: nn.Module, share: float, *, group: dist.ProcessGroup | None = None, bucket_mb: float = 25.0
) -> tuple[DistributedDataParallel, TopKState | None]:
    """`module` under DDP; a collective call.

    Args:
        share: of the gradients that is sent; 1 is DDP's own all-reduce.
        bucket_mb: size of a bucket in MiB.

    Returns:
        The wrapped module, and the hook's state for checkpoints; None where `share` is 1.
    """
    # one size for all buckets: by default the first one is smaller
    wrapped = DistributedDataParallel(
        module, process_group=group, bucket_cap_mb=bucket_mb, gradient_as_bucket_view=True
    )
    if share == 1.0:
        return wrapped, None
    state = TopKState(module, share, group)
    wrapped.register_comm_hook(state, top_k_hook)
    return wrapped, state
