"""What stands before the application: limits of size and number, and the counting of what is answered.

In: an ASGI application. Out: one that answers 413 to a body that is too large, before it is in memory, and 503 with
`Retry-After` to what is too much at once; and that counts every answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from hse_dist.serve.counts import Counts
from hse_dist.serve.options import Limits
from hse_dist.serve.refusals import PATHS, RECOMMEND, refusal, too_large

RETRY_AFTER_SECONDS = 1
CLIENT_GONE = 499
"""Counted where nobody waits for an answer any more: the client has gone, or its time was over."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

CLOSE = {"Connection": "close"}
"""Where a body may not have come in full: what still comes of it is not taken in."""


class Guard:
    """An ASGI middleware.

    Args:
        app: what is guarded.
        ending: whether no more questions are taken.
    """

    def __init__(self, app: Application, limits: Limits, counts: Counts, ending: Callable[[], bool]) -> None:
        self._app, self._limits, self._counts, self._ending = app, limits, counts, ending
        self._in_flight = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500  # what Starlette answers when the application raises

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        # paths that nobody serves are anybody's: one name for all keeps the page short
        path = scope["path"] if scope["path"] in PATHS else "other"
        try:
            if refused := refusal(scope, self._limits):
                answer = JSONResponse({"detail": refused[1]}, status_code=refused[0], headers=CLOSE)
                await answer(scope, receive, watched)
            elif path == RECOMMEND:
                await self._limited(scope, receive, watched)
            else:
                await self._bounded(scope, receive, watched)
        except asyncio.CancelledError:
            status = CLIENT_GONE
            raise
        finally:
            self._counts.request(path, status, time.perf_counter() - began)

    async def _limited(self, scope: Message, receive: Receive, send: Send) -> None:
        refused = "This server is ending." if self._ending() else ""
        if self._in_flight >= self._limits.concurrency:
            refused = f"{self._in_flight} requests are under way, the most that are taken at once."
        if refused:
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            await JSONResponse({"detail": refused}, status_code=503, headers=headers)(scope, receive, send)
            return
        self._in_flight += 1
        self._counts.in_flight(self._in_flight)
        try:
            await self._bounded(scope, receive, send)
        finally:
            self._in_flight -= 1
            self._counts.in_flight(self._in_flight)

    async def _bounded(self, scope: Message, receive: Receive, send: Send) -> None:
        most = self._limits.max_body_bytes
        got = 0

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > most:  # it came in pieces, without a length
                raise HTTPException(413, too_large(most), CLOSE)
            return message

        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with asyncio.timeout(self._limits.seconds):
                await self._app(scope, counted, noted)
        except TimeoutError:
            if started:
                raise
            late = f"There was no answer within {self._limits.seconds} s, the most that a request may take."
            await JSONResponse({"detail": late}, status_code=408, headers=CLOSE)(scope, receive, send)
