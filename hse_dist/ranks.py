"""The ranks of a run: who am I, how many are we, and the few exchanges that are not TorchRec's.

In: arrays and small objects of this rank. Out: those of the others. One class serves 1 and N ranks: with one rank the
group is a gloo group of one, not another code path. Every exchange ends at the group's own time limit.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hse_dist.errors import MissingRanksError

KINDS = ("ids", "columns", "values", "gains", "gradients", "rewire")
"""What ranks send to each other: ids of rows or chunks, what is looked up, gradients, and all that a rewire needs."""


@dataclass
class ByteMeter:
    """Payload that this rank has sent to others, in bytes, by kind."""

    sent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    _purpose: str | None = None

    def add(self, kind: str, count: int) -> None:
        """Count bytes of a kind of `KINDS`."""
        self.sent[self._purpose or kind] += count

    @contextmanager
    def all_as(self, kind: str) -> Iterator[None]:
        """Count whatever is sent in the block as of this kind."""
        self._purpose, before = kind, self._purpose
        try:
            yield
        finally:
            self._purpose = before

    def since(self, before: dict[str, int]) -> dict[str, int]:
        """What was sent after `sent` had been `before`."""
        return {kind: count - before[kind] for kind, count in self.sent.items()}


class Ranks:
    """This process's place in the default process group."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.meter = ByteMeter()

    def exchange(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Send `parts[r]` to rank r; what each rank sent to this one. The meter counts it as of a rewire.

        Args:
            parts: a tensor for every rank, `[n_r, …]`, equal in dtype and trailing shape everywhere.
        """
        if self.size == 1:
            return [parts[0]]
        self.meter.add("rewire", sum(part.nbytes for rank, part in enumerate(parts) if rank != self.rank))
        sizes = torch.tensor([len(part) for part in parts], device=self.device)
        incoming = torch.empty_like(sizes)
        dist.all_to_all_single(incoming, sizes)
        counts = incoming.tolist()
        out = parts[0].new_empty((sum(counts), *parts[0].shape[1:]))
        dist.all_to_all_single(out, torch.cat(list(parts)), counts, [len(part) for part in parts])
        return list(out.split(counts))

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over ranks, in place."""
        dist.all_reduce(values)
        return values

    def maximum(self, values: Tensor) -> Tensor:
        """The elementwise maximum over ranks, in place."""
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def largest(self, value: int) -> int:
        """The largest of the ranks' values."""
        result = torch.tensor(value, device=self.device)
        dist.all_reduce(result, op=dist.ReduceOp.MAX)
        return int(result)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's small object, in rank order, on every rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks.

        Raises:
            MissingRanksError: somebody did not come within the group's limit.
        """
        try:
            dist.barrier()
        except RuntimeError as error:
            raise MissingRanksError("Not every rank reached a barrier.", cause=str(error)) from error


@contextmanager
def process_group(rank: int, size: int, address: str, device: torch.device, timeout_seconds: float) -> Iterator[Ranks]:
    """A default process group for the block: nccl with gloo for CPU tensors on CUDA, gloo on CPU."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    # torch's TCPStore listens on every interface, whatever the address; a rank alone needs none
    meeting: dict[str, Any] = {"store": dist.HashStore()} if size == 1 else {"init_method": f"tcp://{address}"}
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_seconds), **meeting)
    try:
        yield Ranks(device)
        dist.barrier()  # a rank that leaves while another's exchange is under way would abort it
    finally:
        dist.destroy_process_group()


def free_address() -> str:
    """A loopback address that no one listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"
