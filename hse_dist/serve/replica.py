"""The application on Ray Serve: replicas that answer, and a board between them.

In: options. Out: a Ray Serve application. `hse-dist serve` runs it on a Ray of this machine; a Ray Serve configuration
names `hse_dist.serve.replica:application` as its `import_path`, and the options as `args`.

Nothing is decided here: the classes hold what `app.py` and `counts.py` made.

Ray 2.60 opens in every replica a second way in: a gRPC server on all interfaces that unpickles what it is sent (behind
Ray's token, where there is one). Ray Serve uses it only where RAY_SERVE_USE_GRPC_BY_DEFAULT or HAProxy is on; elsewhere
it stays shut.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from ray import serve

from hse_dist.errors import ConfigError
from hse_dist.serve.app import make_app
from hse_dist.serve.counts import Snapshot, without_gauges
from hse_dist.serve.guard import RETRY_AFTER_SECONDS
from hse_dist.serve.options import parse_options
from hse_dist.serve.service import Service

BOARD = "board"
GONE_SECONDS = 10.0
"""Without a word of a replica: it has ended."""
BESIDE = 64
"""Requests beyond `limits.concurrency` that reach a replica, to be refused by it, or for its health and its counts."""
BOARD_SECONDS = 2.0
"""To wait for the board; then a page has the counts of one replica alone."""


def shut_second_way_in() -> None:
    """Let this replica, which is about to start, listen nowhere: requests come by Ray's own calls."""
    import ray.serve._private.replica as internal
    from ray.serve._private.constants import RAY_SERVE_ENABLE_DIRECT_INGRESS, RAY_SERVE_USE_GRPC_BY_DEFAULT

    if not (RAY_SERVE_ENABLE_DIRECT_INGRESS or RAY_SERVE_USE_GRPC_BY_DEFAULT):
        internal.add_port_to_grpc_server = lambda server, address: 0


@serve.deployment(name=BOARD, num_replicas=1, ray_actor_options={"num_cpus": 0})
class Board:
    """The newest counts of every replica, and whether they are to end."""

    def __init__(self) -> None:
        shut_second_way_in()
        self._found: dict[str, tuple[float, Snapshot]] = {}
        self._ending = False

    def exchange(self, replica: str, counts: Snapshot) -> tuple[list[Snapshot], bool]:
        """Take the counts of one; give those of all, and whether to take no more requests."""
        now = time.monotonic()
        self._found[replica] = now, counts
        found = [
            counts if now - when < GONE_SECONDS else without_gauges(counts) for when, counts in self._found.values()
        ]
        return found, self._ending

    def end(self) -> None:
        """From now on replicas are told to take no more requests."""
        self._ending = True


@serve.deployment(name="recommender")
@serve.ingress()
class Replica:
    """One process that answers."""

    def __init__(self, raw: dict[str, Any], board: Any) -> None:
        shut_second_way_in()
        self._options, self._board, self._name = parse_options(raw), board, uuid4().hex
        self._service = Service(self._options.export, self._options.limits)

    def __serve_build_asgi_app__(self) -> FastAPI:
        options = self._options
        return make_app(
            self._service,
            options.limits,
            threads=options.threads,
            look_seconds=options.look_seconds,
            gather=self._gather,
        )

    async def _gather(self, own: Snapshot) -> list[Snapshot]:
        try:
            answer = self._board.exchange.remote(self._name, own)
            found, ending = await asyncio.wait_for(answer, BOARD_SECONDS)
        except Exception:  # whatever Ray raises while the board starts again
            return [own]
        self._service.ending |= ending
        return found


def application(raw: dict[str, Any]) -> serve.Application:
    """What Ray Serve runs.

    Args:
        raw: fields of `Options`; `host` and `port` belong to Ray Serve's proxies, and are not looked at here.

    Raises:
        ConfigError: the options are wrong.
    """
    options = parse_options(raw)
    if not options.replicas:
        raise ConfigError("Ray Serve needs a replica at least.", setting="replicas", value=0)
    most = options.limits.concurrency
    replica = Replica.options(  # type: ignore[attr-defined]
        num_replicas=options.replicas,
        max_ongoing_requests=most + BESIDE,
        max_queued_requests=most + BESIDE,
        backpressure_config={"retry_after_s": RETRY_AFTER_SECONDS},
        ray_actor_options={"num_cpus": options.threads},
    )
    return replica.bind(options.model_dump(), Board.bind())  # type: ignore[attr-defined]
