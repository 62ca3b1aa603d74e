"""`hse-dist serve`: a server on this machine until Ctrl-C or SIGTERM, and nothing left of it after that.

In: options. Out: what has been answered. With replicas it is Ray Serve (`on_ray.py`), without any this process
(`here.py`).
"""

from __future__ import annotations

import importlib.util
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any

from hse_dist.errors import ResourceError, ServeError
from hse_dist.preemption import ending, undisturbed
from hse_dist.processes import nothing_left
from hse_dist.serve.asking import Running, for_url
from hse_dist.serve.options import Options

SECONDS_TO_END = 10.0
"""For Ray's processes, once Ray has been shut down; then they are killed."""
LOOK_SECONDS = 2.0
FAILED_LOOKS = 5
"""One after the other, and the server has failed."""
log = logging.getLogger(__name__)


def run(options: Options) -> dict[str, Any]:
    """Serve until somebody ends it.

    Returns:
        `url`, `seconds`; `requests` and `errors`, unless they could not be read at the end.

    Raises:
        ResourceError: the extra `serve` is not installed, the address cannot be listened on, or Ray does not start.
        ExportError: there is no export that can be read.
        ServeError: the server did not start, or stopped answering.
    """
    check_installed()
    _check_export(options)
    options = _with_port(options)
    url, began = f"http://{for_url(options.host)}:{options.port}", time.perf_counter()
    with ending(), nothing_left(SECONDS_TO_END), ExitStack() as stack:
        running = stack.enter_context(_serving(options))
        with _asked_to_end() as end:  # from the line on that says so
            log.info("Serving %s at %s after %.1f s; Ctrl-C ends it", options.export, url, time.perf_counter() - began)
            _wait(end, running)
        with undisturbed():
            log.info("Ending: requests under way are answered")
            running.drain()
            counts = _counts(running)
            stack.close()
    return {"url": url, **counts, "seconds": time.perf_counter() - began}


def _serving(options: Options) -> AbstractContextManager[Running]:
    if options.replicas:
        from hse_dist.serve.on_ray import serving_on_ray

        return serving_on_ray(options)
    from hse_dist.serve.here import serving_here

    return serving_here(options)


def check_installed() -> None:
    """Raise ResourceError where the extra `serve` is missing."""
    names = ("ray", "fastapi", "uvicorn", "httptools", "prometheus_client")
    missing = [name for name in names if not importlib.util.find_spec(name)]
    if missing:
        raise ResourceError(
            f"A server needs {', '.join(missing)}, which is not installed.", cause="pip install 'hse-dist[serve]'"
        )


def _check_export(options: Options) -> None:
    """One message here, rather than a replica's traceback; what is read is let go at once."""
    from hse_dist.export.format import load_export
    from hse_dist.serve.place import find

    load_export(find(Path(options.export)).folder)


def _with_port(options: Options) -> Options:
    """The options with a port that is free; Ray Serve itself would share one with another of its kind."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((options.host, options.port))
            port = probe.getsockname()[1]
    except OSError as error:
        raise ResourceError(
            f"Nobody can listen on {options.host}, port {options.port}: {error}.",
            cause="Another program has it, or the address is none of this machine.",
            setting="--port",
            value=options.port,
        ) from None
    if not _is_loopback(options.host):
        log.warning("Whoever reaches %s may ask: there is no password (setting --host)", options.host)
    return options.model_copy(update={"port": port})


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _asked_to_end() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set: for a server that answers they are the way to end well."""
    end = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        end.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(end: threading.Event, running: Running) -> None:
    """Until somebody ends it, or nobody answers any more."""
    failed = 0
    while not end.wait(LOOK_SECONDS):
        try:
            running.look()
            failed = 0
        except (OSError, HTTPException) as error:
            failed += 1
            if failed >= FAILED_LOOKS:
                raise ServeError(f"The HTTP server does not answer: {error}") from None


def _counts(running: Running) -> dict[str, int]:
    try:
        return {name: int(running.total(f"hse_serve_{name}_total")) for name in ("requests", "errors")}
    except (OSError, HTTPException, ValueError) as error:
        log.warning("The counts cannot be read: %s", error)
        return {}
