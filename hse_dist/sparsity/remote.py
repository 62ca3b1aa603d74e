"""A rank's, and the driver's, side of the conversation with the SparsityServer's actor.

In: one message. Out: this rank's reply, when every rank has sent its own. A rank keeps what it has said since the last
final decision: an actor that died and started again asks for it. Where the actor is silent for longer than a limit it
is ended, so that Ray starts another one, and the worker group starts again from its checkpoint.
"""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray

from hse_dist import preemption
from hse_dist.errors import HseError, MissingRanksError, ProtocolError
from hse_dist.ranks import ByteMeter
from hse_dist.sparsity.actor import WARN_SECONDS, Lost
from hse_dist.sparsity.messages import Closed, Message
from hse_dist.sparsity.selection import Counts, Query, Selection

LONGER_SECONDS = 10.0
"""By so much more than the actor a rank waits, so that the actor's error, which names the missing, comes first."""
BEAT_SECONDS = 1.0
BEAT_TIMEOUT_SECONDS = 10.0
RANKS_A_SECOND = 100
"""Signs of life that the actor is to take in a second, whatever the number of ranks."""
log = logging.getLogger(__name__)


class SilentServerError(MissingRanksError):
    """The actor says nothing at all."""


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
        raise SilentServerError(
            "The SparsityServer does not answer.", setting="cluster.timeout_seconds", value=limit
        ) from None


class RemoteCut:
    """The selection of a start, decided by the actor; the driver brings it the histograms of the start's files."""

    def __init__(self, actor: Any, limit: float, count: int, largest: bool) -> None:
        self.actor, self.limit, self._selection = actor, limit, (count, largest)
        self._fed: list[Counts] = []
        self.query: Query = self._open()

    def _open(self) -> Query:
        return _get(self.actor.open_cut.remote(*self._selection), self.limit)

    def feed(self, histograms: Counts) -> Query | Selection:
        """The next query, or the answer; an actor that died meanwhile is told all of it again.

        Raises:
            ProtocolError: the actor died twice.
        """
        self._fed.append(histograms)
        try:
            return _get(self.actor.feed_cut.remote(histograms), self.limit)
        except ProtocolError:
            self._open()  # waits for the actor that Ray starts
        answer: Query | Selection = self.query
        for counts in self._fed:
            answer = _get(self.actor.feed_cut.remote(counts), self.limit)
        return answer


class RayTransport:
    """A rank's connection to the actor.

    Args:
        actor: its handle.
        attempt: name of this worker group, the same on all of its ranks.
        limit: seconds that a reply may take.
        meter: counts the messages.
        again: seconds without a reply after which a message is sent once more: it may have been lost.
    """

    def __init__(
        self,
        actor: Any,
        attempt: str,
        rank: int,
        limit: float,
        meter: ByteMeter | None = None,
        again: float = WARN_SECONDS,
    ) -> None:
        self.actor, self.attempt, self.rank, self.limit, self.sequence = actor, attempt, rank, limit, 0
        self.meter, self.again = meter or ByteMeter(), again
        self._said: dict[int, Message] = {}

    def _call(self, send: Callable[[], Any]) -> Any:
        """The answer to a message that may be sent again."""
        end, sent = time.monotonic() + self.limit + LONGER_SECONDS, [send()]
        try:
            while True:
                left = end - time.monotonic()
                answered, _ = ray.wait(sent, timeout=max(min(left, self.again), 0.0))
                if answered or left <= 0:
                    return _get((answered or sent)[0], 0.0 if not answered else self.limit)
                log.warning("The SparsityServer has not answered rank %d for %.0f s", self.rank, self.again * len(sent))
                sent.append(send())
        except SilentServerError:
            self._end_silent_actor()
            raise

    def _end_silent_actor(self) -> None:
        """Ray starts another one, for the next worker group to join."""
        log.error("The SparsityServer is silent: it is ended, for Ray to start it again")
        with suppress(ray.exceptions.RayError):
            ray.kill(self.actor, no_restart=False)

    def join(self, ranks: int, steps: int, fingerprint: str, state: dict[str, Any]) -> None:
        """Make this worker group the one that the server listens to."""
        self._call(lambda: self.actor.join.remote(self.attempt, ranks, steps, fingerprint, state))

    def ask(self, message: Message) -> Any:
        """This rank's reply to `message`, after every rank has sent one.

        Raises:
            ProtocolError: the actor was lost with more than ranks can tell it again.
        """
        self.sequence += 1
        self._said[self.sequence] = message
        self.meter.add("rewire", len(pickle.dumps(message)))
        reply = self._tell(self.sequence)
        while isinstance(reply, Lost):
            reply = self._repeat(reply.since)
        if isinstance(reply, Closed):
            self._said.clear()  # the actor wrote it down before it said so
        return reply

    def _tell(self, sequence: int) -> Any:
        return self._call(lambda: self._send(sequence))

    def _send(self, sequence: int) -> Any:
        return self.actor.ask.remote(self.attempt, self.rank, sequence, self._said[sequence], self.limit)

    def _repeat(self, since: int) -> Any:
        """Say again what was said after the sequence `since`; the reply to the last of it."""
        if since + 1 < min(self._said):
            raise ProtocolError(f"The SparsityServer knows nothing after message {since} of rank {self.rank}.")
        log.warning("Rank %d tells the new SparsityServer messages %d to %d again", self.rank, since + 1, self.sequence)
        for sequence in range(since + 1, self.sequence + 1):
            reply = self._tell(sequence)
            if isinstance(reply, Lost):
                break  # it died again
        return reply

    def where(self) -> tuple[str, int]:
        """Address of the node, and the process id, that the actor has now."""
        return self._call(lambda: self.actor.where.remote())

    def state_dict(self) -> dict[str, Any]:
        """The server's version and journal."""
        return self._call(lambda: self.actor.state_dict.remote(self.attempt))


class Pulse:
    """Tells the actor again and again that this rank lives, from a thread; hears from it whether to stop.

    Args:
        step: what says where the rank is.
        ranks: how many there are.
    """

    def __init__(self, transport: RayTransport, ranks: int, step: Callable[[], int]) -> None:
        self._transport, self._step, self._over = transport, step, threading.Event()
        self._interval = max(BEAT_SECONDS, ranks / RANKS_A_SECOND)
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        to, one = self._transport, ray.exceptions.RayError
        while not self._over.wait(self._interval):
            with suppress(one):  # what ails the actor is told by who waits for its decisions
                if ray.get(to.actor.beat.remote(to.attempt, to.rank, self._step()), timeout=BEAT_TIMEOUT_SECONDS):
                    preemption.ask()

    def end(self) -> None:
        """Be silent, and say so."""
        self._over.set()
        self._thread.join(BEAT_SECONDS)  # a sign of life after this would be taken for a new one
        with suppress(ray.exceptions.RayError):
            self._transport.actor.leave.remote(self._transport.attempt, self._transport.rank)
