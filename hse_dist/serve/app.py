"""The application: paths, checks, schema. FastAPI, without Ray: a test calls it in its own process.

In: a service, the limits, and what gathers the counts of all replicas. Out: an ASGI application.

Answers are computed in threads, `threads` at a time: the kernels leave the interpreter to others meanwhile, and the
event loop goes on taking requests, refusing them, and saying that all is well.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from copy import deepcopy
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

import hse_dist
from hse_dist.errors import HseError, UserError
from hse_dist.serve.counts import CONTENT_TYPE, Snapshot, page
from hse_dist.serve.guard import RETRY_AFTER_SECONDS, Guard
from hse_dist.serve.messages import Answer, Health, Problem, Reloaded, question_model
from hse_dist.serve.options import Limits
from hse_dist.serve.refusals import HEALTHZ, METRICS, RECOMMEND, RELOAD
from hse_dist.serve.service import Service, Watch

NAMED = 5
"""Mistakes of a request that its answer names."""

SHOWN, MESSAGE = 64, 200
"""Characters of a field's name, which the client may have made up, and of a message."""

Gather = Callable[[Snapshot], Awaitable[list[Snapshot]]]


async def alone(own: Snapshot) -> list[Snapshot]:
    """The counts of all replicas, where there is one."""
    return [own]


def make_app(
    service: Service, limits: Limits, *, threads: int = 1, look_seconds: float = 1.0, gather: Gather = alone
) -> FastAPI:
    """The application.

    Args:
        threads: answers that are computed at a time.
        look_seconds: between looks for a newer export, while the application's lifespan runs.
        gather: hands over the counts of this replica, and returns those of all.
    """
    watch = Watch(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # two tasks: to load an export may take minutes, and the others would take this replica for one that has ended
        tasks = [
            asyncio.create_task(_look(watch, look_seconds)),
            asyncio.create_task(_tell(service, look_seconds, gather)),
        ]
        with ThreadPoolExecutor(threads, "answer") as app.state.pool:
            yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    app = FastAPI(
        title="hse_dist",
        description="Recommendations from an export of hse_dist.",
        version=hse_dist.__version__,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses={
            408: {"model": Problem, "description": "It took too long."},
            413: {"model": Problem, "description": "The body is too large."},
        },
    )
    app.add_middleware(Guard, limits=limits, counts=service.counts, ending=lambda: service.ending)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HseError)(_failed)
    _add_recommend(app, service, limits)
    _add_others(app, service, gather)
    app.openapi = lambda: _described(app, service.features)  # type: ignore[method-assign]
    return app


def _described(app: FastAPI, features: Sequence[str]) -> dict[str, Any]:
    """The schema, with the features of the export that is answered from now."""
    schema = deepcopy(FastAPI.openapi(app))
    asked = schema["components"]["schemas"]["Question"]["properties"]["features"]
    known = next(one for one in asked["anyOf"] if one.get("type") == "object")
    known["properties"] = {name: known["additionalProperties"] for name in features}
    known["additionalProperties"] = False
    return schema


async def _look(watch: Watch, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(watch)


async def _tell(service: Service, seconds: float, gather: Gather) -> None:
    while True:
        await asyncio.sleep(seconds)
        with suppress(Exception):  # whoever gathers may be starting again; the next time counts
            await gather(service.counts.snapshot())


def _add_recommend(app: FastAPI, service: Service, limits: Limits) -> None:
    Question = question_model(limits)
    problems: dict[int | str, dict[str, Any]] = {
        400: {"model": Problem, "description": "The body cannot be read."},
        422: {"model": Problem, "description": "The question is wrong, or more than is allowed."},
        503: {"model": Problem, "description": "Too much at once; try again after `Retry-After` seconds."},
    }

    async def recommend(question: Any) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(app.state.pool, service.answer, question)

    recommend.__annotations__["question"] = Question  # it depends on the limits
    text = "The best items for one history and what else is known of the user."
    app.post(RECOMMEND, response_model=Answer, responses=problems, description=text)(recommend)


def _add_others(app: FastAPI, service: Service, gather: Gather) -> None:
    problems: dict[int | str, dict[str, Any]] = {
        403: {"model": Problem, "description": "A page of another origin asks."},
        409: {"model": Problem, "description": "The export is unfit; the one before is kept."},
        503: {"model": Problem, "description": "Another request for it is under way; try again."},
    }

    asked = threading.Lock()

    def look() -> Reloaded:
        try:
            return service.look(again=True)
        finally:
            asked.release()

    @app.post(RELOAD, responses=problems)
    async def reload() -> Reloaded:
        """Look for a newer export now. Requests under way end with the one before."""
        if not asked.acquire(blocking=False):  # it may have looked too early for this one, and each takes a thread
            again = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            raise HTTPException(503, "Another request to reload is under way.", again)
        # it goes on, and gives the lock back, where nobody waits any more
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, look))

    @app.get(HEALTHZ)
    async def healthz() -> Health:
        """Whether this replica answers, and from what."""
        return Health(version=service.version, items=service.items, features=list(service.features))

    @app.get(
        METRICS, response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    )
    async def metrics() -> Response:
        """The counts of all replicas, for Prometheus."""
        return Response(page(await gather(service.counts.snapshot())), headers={"Content-Type": CONTENT_TYPE})


async def _invalid(request: Request, error: Exception) -> Response:
    """What is wrong, without what was sent: that may be long, or no JSON."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    said = [f"{'.'.join(str(part)[:SHOWN] for part in one['loc'])}: {one['msg'][:MESSAGE]}" for one in found[:NAMED]]
    more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return JSONResponse({"detail": f"{'; '.join(said)}{more}"}, status_code=422)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HseError)
    wrong = 409 if request.url.path == RELOAD else 422
    return JSONResponse({"detail": str(error)}, status_code=wrong if isinstance(error, UserError) else 500)
