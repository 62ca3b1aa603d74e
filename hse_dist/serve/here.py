"""`hse-dist serve --replicas 0`: the same application in this process, without Ray.

In: options. Out: a server on a thread of its own, until the block ends; requests under way are answered first. For one
machine that needs one process: a request costs a quarter of what it costs by Ray Serve's proxy and a replica.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from hse_dist.errors import ServeError
from hse_dist.serve.app import make_app
from hse_dist.serve.asking import Running
from hse_dist.serve.connections import Bounded, most_connections
from hse_dist.serve.options import Options
from hse_dist.serve.service import Service

SECONDS_TO_START = 30.0
SECONDS_TO_END = 5.0
"""Beyond what a request may take."""
BACKLOG = 2048
LOOK_SECONDS = 0.02


@contextmanager
def serving_here(options: Options) -> Iterator[Running]:
    """Serve for the block.

    Raises:
        ServeError: it did not start.
        HseError: there is no export that could be served.
    """
    service = Service(options.export, options.limits)
    app = make_app(service, options.limits, threads=options.threads, look_seconds=options.look_seconds)
    most = most_connections()
    config = uvicorn.Config(
        app,
        http=type("Connection", (Bounded,), {"most": most}),
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        lifespan="on",
        server_header=False,
        backlog=min(BACKLOG, most // 2),  # so many may be taken at once,
        timeout_graceful_shutdown=options.limits.seconds,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="server", daemon=True)
    thread.start()
    end = time.monotonic() + SECONDS_TO_START
    while not server.started:
        if not thread.is_alive() or time.monotonic() > end:
            raise ServeError("The HTTP server did not start.", cause="Its log says why.")
        time.sleep(LOOK_SECONDS)

    def look() -> None:
        if not thread.is_alive():
            raise ServeError("The HTTP server has ended.", cause="Its log says why.")

    def drain() -> None:
        service.ending = True  # others are told to come again
        last = time.monotonic() + options.limits.seconds
        while thread.is_alive() and time.monotonic() < last and service.counts.total("hse_serve_in_flight") > 0:
            time.sleep(LOOK_SECONDS)
        end_it()

    def end_it() -> None:
        server.should_exit = True
        thread.join(options.limits.seconds + SECONDS_TO_END)

    try:
        yield Running(look, drain, service.counts.total)
    finally:
        end_it()
