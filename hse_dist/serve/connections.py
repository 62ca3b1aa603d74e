"""Connections that ask nothing: how long, and how many of them, `--replicas 0` keeps.

In: uvicorn's protocol. Out: one that closes a connection whose request's head does not come in full, and the one that
has been idle longest where there would be more than `most`. Otherwise clients that send half a head would take all file
descriptors of this process. A request that waits for its answer is never closed.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
"""For the head of a request, from its first byte or the beginning of the connection."""
MOST = 4096


def most_connections() -> int:
    """Half of the file descriptors: the export, logs and the connections that wait for a place need some."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(8, min(MOST, soft // 2 if soft > 0 else MOST))


class Bounded(HttpToolsProtocol):
    """One connection."""

    most, head_seconds = MOST, HEAD_SECONDS

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._late: asyncio.TimerHandle | None = None
        self._since = self.loop.time()

    @property
    def _idle(self) -> bool:
        # closing: an answer that nobody reads keeps a connection open for good
        return self.cycle is None or self.cycle.response_complete or self.transport.is_closing()

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        if len(self.connections) >= self.most:
            idle = [one for one in self.connections if isinstance(one, Bounded) and one._idle]
            if idle:
                min(idle, key=lambda one: one._since).close_now()
            else:
                self.connections.add(self)  # connection_lost takes it out
                self.transport = transport
                transport.abort()
                return
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request's head or body."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # a whole head
            self._since = self.loop.time()
            self._stop_waiting()
        elif self._idle and self._late is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_waiting()
        super().connection_lost(exc)

    def close_now(self) -> None:
        """Give its file descriptor back."""
        self.connections.discard(self)
        self.transport.abort()

    def _wait_for_head(self) -> None:
        self._late = self.loop.call_later(self.head_seconds, self._too_late)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        if self._idle and not self.transport.is_closing():
            self.transport.close()
