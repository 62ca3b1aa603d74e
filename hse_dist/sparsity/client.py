"""A rank's side of the conversation with the SparsityServer.

In: one message. Out: this rank's reply, when every rank has sent its own. Two transports carry it: the process group
(one process, and tests on real gloo ranks), where rank 0 holds the server, and the Ray actor.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch.distributed as dist

from hse_dist.errors import HseError
from hse_dist.ranks import Ranks
from hse_dist.sparsity.messages import Histogram, Message, Purpose
from hse_dist.sparsity.selection import Keys, Query, Selection, histogram, under
from hse_dist.sparsity.server import SparsityServer


class Transport(Protocol):
    """Brings a message to the server and the reply back."""

    def ask(self, message: Message) -> Any:
        """This rank's reply to `message`, after every rank has sent one."""

    def state_dict(self) -> dict[str, Any]:
        """The server's version and journal."""


class GroupTransport:
    """The server is an object of rank 0; messages go over the process group."""

    def __init__(self, ranks: Ranks, make_server: Callable[[], SparsityServer]) -> None:
        self.ranks = ranks
        self.server = make_server() if ranks.rank == 0 else None

    def ask(self, message: Message) -> Any:
        messages: list[Any] | None = [None] * self.ranks.size if self.server is not None else None
        if self.server is None:
            self.ranks.meter.add("rewire", len(pickle.dumps(message)))
        dist.gather_object(message, messages)
        replies: list[Any] = [None] * self.ranks.size
        if self.server is not None and messages is not None:
            try:
                replies = self.server.decide(messages)
            except HseError as error:
                replies = [error] * self.ranks.size
        box: list[Any] = [None]
        dist.scatter_object_list(box, replies if self.server is not None else None)
        if isinstance(box[0], HseError):
            raise box[0]
        return box[0]

    def state_dict(self) -> dict[str, Any]:
        box = [self.server.state_dict() if self.server is not None else None]
        dist.broadcast_object_list(box)
        assert box[0] is not None
        return box[0]


def select(transport: Transport, version: int, purpose: Purpose, parts: Callable[[], Iterable[Keys]]) -> Selection:
    """Take part in one global selection; which keys of this rank are chosen, the answer's only quota being this rank's.

    Args:
        parts: this rank's keys, uint32, 0 for none; in parts, and asked for twice.
    """
    answer: Query | Selection = Query(0, 0)
    fewer: list[Keys] | None = None
    while isinstance(answer, Query):
        if answer.round == 1:
            query = answer
            # copies: what `under` gives is a part of something as long as the keys
            fewer = [under(keys, query).copy() for keys in parts()]
        counts = np.zeros(answer.bins, dtype=np.int64)
        for keys in parts() if fewer is None else fewer:
            counts += histogram(keys, answer)
        answer = transport.ask(Histogram(version, purpose, counts))
    return answer
