"""Following a job until it ends: its log as it grows, its state beside it.

In: a job server, a job, and what takes the log. Out: the job's last state. A connection that is lost, as tunnels lose
them, is made anew; a cluster that says nothing for `SILENT_SECONDS` is given up, and the job may go on there.
"""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress
from typing import Any

from hse_dist.errors import PreemptedError, ResourceError, TrainingError
from hse_dist.submit.log_lines import LogLines
from hse_dist.submit.server import JobServer, State

LOOK_SECONDS = 2.0
"""Between two looks at a job's state while its log is read, and before a lost connection is made anew."""
REST_SECONDS = 10.0
"""For the rest of the log, once the job has ended."""
SILENT_SECONDS = 120.0
"""Without any answer of the cluster, after which it is given up."""


def follow(server: JobServer, name: str, lines: LogLines, seconds: float) -> State:
    """The state in which the job ended.

    Args:
        seconds: limit of the whole; the job goes on after it.

    Raises:
        ResourceError: the cluster has not answered for `SILENT_SECONDS`.
        TrainingError: the limit is over. PreemptedError: SIGTERM came. KeyboardInterrupt: Ctrl-C.
    """
    lines.again()
    return asyncio.run(_Following(server, name, lines, seconds).run())


class _Following:
    def __init__(self, server: JobServer, name: str, lines: LogLines, seconds: float) -> None:
        self._server, self._name, self._lines = server, name, lines
        self._seconds, self._end = seconds, time.monotonic() + seconds
        self._answered = time.monotonic()
        self._terminated = False

    async def run(self) -> State:
        """Until the job has ended."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def terminate() -> None:
            self._terminated = True
            task.cancel()

        with suppress(NotImplementedError, RuntimeError, ValueError):  # outside of the main thread
            loop.add_signal_handler(signal.SIGTERM, terminate)
        try:
            return await self._run()
        except asyncio.CancelledError:
            if self._terminated:
                raise PreemptedError("Stopped by SIGTERM.") from None
            raise

    async def _run(self) -> State:
        while True:
            reading = asyncio.create_task(self._read())
            try:
                state = await self._watch(reading)
            finally:
                reading.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await reading
            if state is not None and state.ended:
                return state
            await asyncio.sleep(LOOK_SECONDS)
            self._lines.again()

    async def _read(self) -> None:
        async for piece in self._server.log(self._name):
            self._answered = time.monotonic()
            self._lines.take(piece)

    async def _watch(self, reading: asyncio.Task[None]) -> State | None:
        """Until the log has come to an end, or the job; the last state seen."""
        while True:
            await asyncio.wait({reading}, timeout=LOOK_SECONDS)
            if time.monotonic() > self._end:
                raise TrainingError(f"The job has not ended within {self._seconds / 60:g} minutes (option --minutes).")
            state = await self._state()
            if state is not None and state.ended:
                await asyncio.wait({reading}, timeout=REST_SECONDS)
                return state
            if reading.done():
                return state

    async def _state(self) -> State | None:
        try:
            state: Any = await asyncio.to_thread(self._server.state, self._name)
        except (ResourceError, TrainingError) as error:
            if time.monotonic() - self._answered > SILENT_SECONDS:
                raise ResourceError(
                    f"The cluster has not answered for {SILENT_SECONDS:.0f} s; the job may still run. {error.what}",
                    cause=error.cause,
                ) from None
            return None
        self._answered = time.monotonic()
        return state if isinstance(state, State) else None
