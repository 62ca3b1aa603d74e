"""The SparsityServer as a named Ray actor: it gathers, decides by calling the server, and answers.

In: messages of ranks, numbered by rank and sequence. Out: each rank's reply, once every rank has sent its message of
that sequence. A repeated message gets the answer it got before. A wait is in the log after `warn_seconds`, ends at a
limit, and names who is missing.

Ray restarts an actor that died. The new one goes on from the snapshot that the old one wrote before each final answer
(`snapshot.py`), and asks ranks for what they have said since (`Lost`); so a lost server costs seconds and no step.
Where there is no snapshot it refuses every rank until a worker group joins with the state of its checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hse_dist.config import SparsitySettings
from hse_dist.errors import HseError, MissingRanksError, ProtocolError
from hse_dist.sparsity.messages import Closed, Message
from hse_dist.sparsity.selection import Counts, Query, Selection
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.snapshot import Snapshot, read_snapshot, write_snapshot

MOST_WAITING = 100_000
"""Calls that may wait at a time. Every rank's message waits for that of the last, so there must be more than ranks."""
WARN_SECONDS = 30.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lost:
    """An answer that is none: the actor started again and knows nothing that was said after the sequence `since`."""

    since: int


class ServerActor:
    """One a run; its methods run on one event loop, so state needs no lock.

    Args:
        settings: what to drop, grow and keep.
        fingerprint: of the configuration; a rank with another one is refused.
        name: of this actor, the same when Ray starts it again.
        snapshot: where it writes down its state; None: nowhere.
        warn_seconds: wait after which the log names who is missing.
    """

    def __init__(
        self,
        settings: SparsitySettings,
        fingerprint: str,
        name: str = "",
        snapshot: Path | None = None,
        warn_seconds: float = WARN_SECONDS,
    ) -> None:
        self.settings, self.fingerprint, self.name = settings, fingerprint, name
        self.path, self.warn_seconds, self.stop = snapshot, warn_seconds, False
        self.server = SparsityServer(settings, 0, 1)
        self._watching: asyncio.Task[None] | None = None
        self._join(None, 0)
        found = read_snapshot(snapshot, name, fingerprint) if snapshot is not None else None
        if found is not None:
            self._go_on(found)

    def _join(self, attempt: str | None, ranks: int, since: int = 0) -> None:
        self._attempt, self._ranks, self._since, self._last, self._final = attempt, ranks, since, since, since
        self._messages: dict[int, dict[int, Message]] = {}
        self._replies: dict[int, list[Any]] = {}
        self._done: dict[int, asyncio.Event] = {}
        self._beats: dict[int, tuple[float, int]] = {}
        self._silent: set[int] = set()
        self._quiet_until = 0.0

    def _go_on(self, found: Snapshot) -> None:
        self._join(found.attempt, found.ranks, found.sequence)
        self.stop = found.stop
        self.server = SparsityServer(self.settings, found.steps, found.ranks)
        self.server.load_state_dict(found.server)
        if found.sequence:
            entry = self.server.journal[-1]
            self._replies[found.sequence] = [Closed(self.server.version, entry)] * found.ranks
        log.warning("The SparsityServer started again and goes on from version %d", self.server.version)

    def _write_down(self, sequence: int) -> None:
        """Before anybody hears of what was decided in `sequence`: an answer that was given must not be lost."""
        if self.path is None or self._attempt is None:
            return
        state, steps = self.server.state_dict(), self.server.steps
        snapshot = Snapshot(self.name, self.fingerprint, self._attempt, self._ranks, steps, sequence, state, self.stop)
        try:
            write_snapshot(self.path, snapshot)
        except OSError as error:
            # training need not end for this; but the next actor must not take an old state for the present one
            log.warning("The SparsityServer cannot write down its state, and would not survive: %s", error)
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    # joining twice is joining once; and every message has its number: so Ray may repeat calls while the actor starts
    # again
    @ray.method(max_task_retries=-1)
    async def open_cut(self, count: int, largest: bool) -> Query:
        """Begin the selection of a start; the histograms that `feed_cut` wants first."""
        return self.server.new_cut(count, largest).query

    async def feed_cut(self, histograms: Counts) -> Query | Selection:
        """The next query of that selection, or its answer."""
        return self.server.feed_cut(histograms)

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
        self._join(attempt, ranks)
        self.server = SparsityServer(self.settings, steps, ranks)
        self.server.load_state_dict(state)
        self._write_down(0)

    @ray.method(max_task_retries=-1)
    async def ask(self, attempt: str, rank: int, sequence: int, message: Message, limit: float) -> Any:
        """The reply to `message`; waits for the other ranks up to `limit` seconds.

        Raises:
            MissingRanksError: names the ranks that sent nothing.
            ProtocolError: the message belongs to an earlier worker group, or to no version; or it was answered long
                ago; or the actor restarted without a snapshot.
        """
        self._check(attempt, f"Rank {rank}")
        if sequence > max(self._last, self._since + 1) and rank not in self._messages.get(sequence - 1, {}):
            return Lost(self._since)
        if sequence < self._last and sequence not in self._replies:
            raise ProtocolError(f"Message {sequence} of rank {rank} was answered long ago.")
        messages = self._messages.setdefault(sequence, {})
        done = self._done.setdefault(sequence, asyncio.Event())
        if sequence not in self._replies:
            messages.setdefault(rank, message)
            if len(messages) == self._ranks:
                self._answer(sequence, [messages[r] for r in range(self._ranks)])
        if sequence in self._replies:
            done.set()
        await self._wait(done, messages, limit)
        reply = self._replies[sequence][rank]
        if isinstance(reply, HseError):
            raise reply
        return reply

    def _answer(self, sequence: int, messages: list[Message]) -> None:
        version = self.server.version
        try:
            replies = self.server.decide(messages)
        except HseError as error:
            replies = [error] * len(messages)
        if self.server.version != version:
            self._final = sequence
            self._write_down(sequence)
        self._replies[sequence], self._last = replies, sequence
        for kept in (self._messages, self._replies, self._done):
            kept.pop(sequence - 2, None)  # every rank has its reply to a sequence before it sends the next

    async def _wait(self, done: asyncio.Event, messages: dict[int, Message], limit: float) -> None:
        began = time.monotonic()
        while not done.is_set():
            left = began + limit - time.monotonic()
            missing = ", ".join(str(rank) for rank in range(self._ranks) if rank not in messages)
            if left <= 0:
                raise MissingRanksError(
                    f"The SparsityServer waited {limit:.0f} s for rank(s) {missing}.",
                    setting="cluster.timeout_seconds",
                    value=limit,
                )
            try:
                await asyncio.wait_for(done.wait(), min(left, self.warn_seconds))
            except TimeoutError:
                waited = time.monotonic() - began
                if waited < limit and time.monotonic() >= self._quiet_until:  # one of those that wait says it for all
                    self._quiet_until = time.monotonic() + 0.9 * self.warn_seconds
                    log.warning("The SparsityServer has waited %.0f s for rank(s) %s", waited, missing)

    @ray.method(max_task_retries=-1)
    async def beat(self, attempt: str, rank: int, step: int) -> bool:
        """A rank lives and is at `step`; whether it is to stop."""
        if attempt == self._attempt:
            self._beats[rank] = (time.monotonic(), step)
            self._silent.discard(rank)
            if self._watching is None:
                self._watching = asyncio.create_task(self._watch())
        return self.stop

    async def leave(self, attempt: str, rank: int) -> None:
        """A rank has done its work, and will say no more."""
        if attempt == self._attempt:
            self._beats.pop(rank, None)

    async def _watch(self) -> None:
        """Name ranks that have stopped to say that they live; they may be stopped, or cut off, or without memory."""
        while True:
            await asyncio.sleep(self.warn_seconds / 4)
            now = time.monotonic()
            for rank, (seen, step) in sorted(self._beats.items()):
                if now - seen > self.warn_seconds and rank not in self._silent:
                    self._silent.add(rank)
                    log.warning("Rank %d has been silent for %.0f s; its last step was %d", rank, now - seen, step)

    @ray.method(max_task_retries=-1)
    async def ask_to_stop(self) -> None:
        """Let all ranks stop after a step, with a checkpoint."""
        if not self.stop:
            self.stop = True
            self._write_down(self._final)  # what was said after that ranks say again

    @ray.method(max_task_retries=-1)
    async def where(self) -> tuple[str, int]:
        """Address of the node, and the process id, that this actor has now."""
        return ray.util.get_node_ip_address(), os.getpid()

    def _check(self, attempt: str, who: str) -> None:
        if self._attempt is None:
            raise ProtocolError(
                f"{who} belongs to the worker group {attempt}, but none has joined.",
                cause="The SparsityServer died and started again, perhaps.",
            )
        if attempt != self._attempt:
            raise ProtocolError(f"{who} belongs to the worker group {attempt}, not to {self._attempt}.")

    @ray.method(max_task_retries=-1)
    async def state_dict(self, attempt: str) -> dict[str, Any]:
        """The server's version and journal.

        Raises:
            ProtocolError: as `ask`; a checkpoint must not get the journal of another worker group, or an empty one.
        """
        self._check(attempt, "Who asks for the state")
        return self.server.state_dict()


def start_server(
    settings: SparsitySettings,
    fingerprint: str,
    name: str,
    snapshot: Path | None = None,
    warn_seconds: float = WARN_SECONDS,
) -> Any:
    """The actor of the run `name`; it takes no core from the workers, and starts again if it dies.

    It runs on the driver's node, the head for a submitted job: a worker's node that is lost does not take it along, and
    where the driver's is lost the run ends anyway.
    """
    # not soft: an actor that asks for no resources goes anywhere then (Ray 2.60; of 8 actors 2 came to this node)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_concurrency=MOST_WAITING)(ServerActor)
    options = actor.options(name=name, get_if_exists=False, max_restarts=-1, scheduling_strategy=here)
    return options.remote(settings, fingerprint, name, snapshot, warn_seconds)
