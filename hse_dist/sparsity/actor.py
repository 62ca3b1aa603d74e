"""The SparsityServer as a named Ray actor: it gathers, decides by calling the server, and answers.

In: messages of ranks, numbered by rank and sequence. Out: each rank's reply, once every rank has sent its message of
that sequence. A repeated message gets the answer it got before. A wait ends at a limit and names who is missing.

Ray restarts an actor that died. The new one knows nothing: it refuses every rank until a worker group joins with the
state of its checkpoint. So a lost server costs the steps since that checkpoint, and never a journal.
"""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import ray

from hse_dist.config import SparsitySettings
from hse_dist.errors import HseError, MissingRanksError, ProtocolError
from hse_dist.ranks import ByteMeter
from hse_dist.sparsity.messages import Message
from hse_dist.sparsity.selection import Counts, Query, Selection
from hse_dist.sparsity.server import SparsityServer

MOST_WAITING = 100_000
"""Calls that may wait at a time. Every rank's message waits for that of the last, so there must be more than ranks."""


class ServerActor:
    """One a run; its methods run on one event loop, so state needs no lock.

    Args:
        settings: what to drop, grow and keep.
        fingerprint: of the configuration; a rank with another one is refused.
    """

    def __init__(self, settings: SparsitySettings, fingerprint: str) -> None:
        self.settings, self.fingerprint = settings, fingerprint
        self.server = SparsityServer(settings, 0, 1)
        self._join(0)

    def _join(self, ranks: int) -> None:
        self._ranks = ranks
        self._attempt: str | None = None
        self._messages: dict[int, dict[int, Message]] = {}
        self._replies: dict[int, list[Any]] = {}
        self._done: dict[int, asyncio.Event] = {}

    async def open_cut(self, count: int, largest: bool) -> Query:
        """Begin the selection of a start; the histograms that `feed_cut` wants first."""
        return self.server.new_cut(count, largest).query

    async def feed_cut(self, histograms: Counts) -> Query | Selection:
        """The next query of that selection, or its answer."""
        return self.server.feed_cut(histograms)

    # joining twice is joining once, so Ray may repeat it while the actor starts again
    @ray.method(max_task_retries=-1)
    async def join(self, attempt: str, ranks: int, steps: int, fingerprint: str, state: dict[str, Any]) -> None:
        """A worker group (re)starts for a run of `steps`; `state` is what its checkpoint says of this server.

        Raises:
            ProtocolError: the rank runs another configuration.
        """
        if fingerprint != self.fingerprint:
            raise ProtocolError("A rank with another configuration wants to join the SparsityServer.")
        if attempt == self._attempt:
            return
        self._join(ranks)
        self._attempt = attempt
        self.server = SparsityServer(self.settings, steps, ranks)
        self.server.load_state_dict(state)

    async def ask(self, attempt: str, rank: int, sequence: int, message: Message, limit: float) -> Any:
        """The reply to `message`; waits for the other ranks up to `limit` seconds.

        Raises:
            MissingRanksError: names the ranks that sent nothing.
            ProtocolError: the message belongs to an earlier worker group, or to no version; or the actor restarted.
        """
        self._check(attempt, f"Rank {rank}")
        messages = self._messages.setdefault(sequence, {})
        done = self._done.setdefault(sequence, asyncio.Event())
        if sequence not in self._replies:
            messages.setdefault(rank, message)
            if len(messages) == self._ranks:
                self._replies[sequence] = self._decide([messages[r] for r in range(self._ranks)])
                self._forget(sequence - 2)  # every rank has its reply to a sequence before it sends the next
                done.set()
        try:
            await asyncio.wait_for(done.wait(), limit)
        except TimeoutError:
            missing = sorted(set(range(self._ranks)) - set(messages))
            raise MissingRanksError(
                f"The SparsityServer waited {limit:.0f} s for rank(s) {', '.join(map(str, missing))}.",
                setting="cluster.timeout_seconds",
                value=limit,
            ) from None
        reply = self._replies[sequence][rank]
        if isinstance(reply, HseError):
            raise reply
        return reply

    def _check(self, attempt: str, who: str) -> None:
        if self._attempt is None:
            raise ProtocolError(
                f"{who} belongs to the worker group {attempt}, but none has joined.",
                cause="The SparsityServer died and started again, perhaps.",
            )
        if attempt != self._attempt:
            raise ProtocolError(f"{who} belongs to the worker group {attempt}, not to {self._attempt}.")

    def _decide(self, messages: list[Message]) -> list[Any]:
        try:
            return self.server.decide(messages)
        except HseError as error:
            return [error] * len(messages)

    def _forget(self, sequence: int) -> None:
        for kept in (self._messages, self._replies, self._done):
            kept.pop(sequence, None)

    async def state_dict(self, attempt: str) -> dict[str, Any]:
        """The server's version and journal.

        Raises:
            ProtocolError: as `ask`; a checkpoint must not get the journal of another worker group, or an empty one.
        """
        self._check(attempt, "Who asks for the state")
        return self.server.state_dict()


def _get(reference: Any, limit: float) -> Any:
    """The actor's answer, or its error as one of this project's."""
    try:
        return ray.get(reference, timeout=limit)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, HseError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise ProtocolError(
            "The SparsityServer died.",
            cause=f"Its node was lost or had no memory left, perhaps; workers that restart join a new one. {error}",
        ) from None
    except ray.exceptions.GetTimeoutError:
        raise MissingRanksError(
            "The SparsityServer does not answer.", setting="cluster.timeout_seconds", value=limit
        ) from None


class RemoteCut:
    """The selection of a start, decided by the actor; the driver brings it the histograms of the start's files."""

    def __init__(self, actor: Any, limit: float, count: int, largest: bool) -> None:
        self.actor, self.limit = actor, limit
        self.query: Query = _get(actor.open_cut.remote(count, largest), limit)

    def feed(self, histograms: Counts) -> Query | Selection:
        """The next query, or the answer."""
        return _get(self.actor.feed_cut.remote(histograms), self.limit)


class RayTransport:
    """A rank's connection to the actor.

    Args:
        actor: its handle.
        attempt: name of this worker group, the same on all of its ranks.
        limit: seconds that a reply may take.
        meter: counts the messages.
    """

    def __init__(self, actor: Any, attempt: str, rank: int, limit: float, meter: ByteMeter | None = None) -> None:
        self.actor, self.attempt, self.rank, self.limit, self.sequence = actor, attempt, rank, limit, 0
        self.meter = meter or ByteMeter()

    def _get(self, reference: Any) -> Any:
        # a little longer than the actor's own limit, so that its error, which names the missing, comes first
        return _get(reference, self.limit + 10.0)

    def join(self, ranks: int, steps: int, fingerprint: str, state: dict[str, Any]) -> None:
        """Make this worker group the one that the server listens to."""
        self._get(self.actor.join.remote(self.attempt, ranks, steps, fingerprint, state))

    def ask(self, message: Message) -> Any:
        """This rank's reply to `message`, after every rank has sent one."""
        self.sequence += 1
        self.meter.add("rewire", len(pickle.dumps(message)))
        return self._get(self.actor.ask.remote(self.attempt, self.rank, self.sequence, message, self.limit))

    def state_dict(self) -> dict[str, Any]:
        """The server's version and journal."""
        return self._get(self.actor.state_dict.remote(self.attempt))


def start_server(settings: SparsitySettings, fingerprint: str, name: str) -> Any:
    """The actor of the run `name`; it takes no core from the workers, and starts again if it dies."""
    actor = ray.remote(num_cpus=0, max_concurrency=MOST_WAITING)(ServerActor)
    return actor.options(name=name, get_if_exists=False, max_restarts=-1).remote(settings, fingerprint)
