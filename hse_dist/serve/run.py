"""`hse-dist serve`: Ray Serve on this machine until Ctrl-C or SIGTERM, and nothing left of it after that.

In: options. Out: what has been answered. Ray's own sockets are on loopback, behind a token; the HTTP server listens
where the options say, on loopback unless asked for otherwise.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any

from hse_dist.errors import HseError, ResourceError, TrainingError
from hse_dist.loopback import keep_to_loopback, keep_to_ourselves
from hse_dist.processes import nothing_left
from hse_dist.serve.options import Options

SECONDS_TO_END = 10.0
"""For Ray's processes, once Serve has been shut down; then they are killed."""
LOOK_SECONDS = 2.0
FAILED_LOOKS = 5
"""One after the other, and the server has failed."""
DRAIN_SECONDS = 0.2
APPLICATION = "hse-dist"
WORKERS = {
    # threads of Ray Serve's own, which only pass a request on; without them a replica answers half as many again
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""Environment of Ray's workers; this process, which waits for a call, needs that loop."""
log = logging.getLogger(__name__)


def run(options: Options) -> dict[str, Any]:
    """Serve until somebody ends it.

    Returns:
        `url`, `seconds`; `requests` and `errors`, unless they could not be read at the end.

    Raises:
        ResourceError: the extra `serve` is not installed, the address cannot be listened on, or Ray does not start.
        ExportError: there is no export that can be read.
    """
    check_installed()
    _check_export(options)
    options = _with_port(options)
    with _asked_to_end() as end, nothing_left(SECONDS_TO_END):
        began = time.perf_counter()
        with _ray(options):
            _deploy(options)
            url = f"http://{_for_url(options.host)}:{options.port}"
            log.info("Serving %s at %s after %.1f s; Ctrl-C ends it", options.export, url, time.perf_counter() - began)
            _wait(end, options)
            log.info("Ending: requests under way are answered, others are told to come again")
            _drain(options)
            counts = _counts(options)
    return {"url": url, **counts, "seconds": time.perf_counter() - began}


def check_installed() -> None:
    """Raise ResourceError where the extra `serve` is missing."""
    missing = [
        name for name in ("ray", "fastapi", "uvicorn", "prometheus_client") if not importlib.util.find_spec(name)
    ]
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


def _for_url(host: str) -> str:
    """An address that a client of this machine may use."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


@contextmanager
def _asked_to_end() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set: for a server they are the way to end well."""
    end = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        end.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ray(options: Options) -> Iterator[None]:
    """A Ray of this machine alone."""
    keep_to_loopback()
    keep_to_ourselves()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here = str(Path(__file__).resolve().parents[2])
    settings = {name: os.environ.get(name, value) for name, value in WORKERS.items()}
    settings["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=options.replicas * options.threads,
            include_dashboard=False,
            logging_level=logging.WARNING,
            runtime_env={"worker_process_setup_hook": "hse_dist.log.set_up_worker", "env_vars": settings},
            _node_ip_address="127.0.0.1",
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(f"Ray does not start: {error}") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray takes SIGTERM for itself
    try:
        yield
    finally:
        ray.shutdown()


def _deploy(options: Options) -> None:
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    from hse_dist.serve.replica import application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    http = HTTPOptions(host=options.host, port=options.port, request_timeout_s=float(options.limits.seconds))
    try:
        serve.start(proxy_location="HeadOnly", http_options=http, logging_config=quiet)
        serve.run(application(options.model_dump()), name=APPLICATION, logging_config=quiet)
    except HseError:
        raise
    except Exception as error:  # Ray Serve raises whatever it likes here
        raise TrainingError(f"Ray Serve did not start: {error}") from error


def _drain(options: Options) -> None:
    """Until no request is under way: what Serve does with an application that goes is to answer 404, and to kill."""
    from ray import serve

    from hse_dist.serve.replica import BOARD

    end = time.monotonic() + options.limits.seconds
    try:
        serve.get_deployment_handle(BOARD, APPLICATION).end.remote().result(timeout_s=LOOK_SECONDS)
        time.sleep(2 * options.look_seconds)  # the replicas hear of it, and then tell what is under way
        while time.monotonic() < end and sum(_samples(options, "hse_serve_in_flight")) > 0:
            time.sleep(DRAIN_SECONDS)
    except Exception as error:  # Ray raises whatever it likes here; the end is near anyway
        log.warning("Requests under way may be lost: %s", error)


def _wait(end: threading.Event, options: Options) -> None:
    """Until somebody ends it, or nobody answers any more."""
    failed = 0
    while not end.wait(LOOK_SECONDS):
        try:
            _get(options, "/-/healthz")
            failed = 0
        except (OSError, HTTPException) as error:
            failed += 1
            if failed >= FAILED_LOOKS:
                raise TrainingError(f"The HTTP server does not answer: {error}") from None


def _get(options: Options, path: str) -> bytes:
    host = _for_url(options.host).strip("[]")
    connection = HTTPConnection(host, options.port, timeout=LOOK_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def _samples(options: Options, name: str) -> list[float]:
    """The numbers of one name on the page for Prometheus."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(_get(options, "/metrics").decode())
    return [sample.value for family in families for sample in family.samples if sample.name == name]


def _counts(options: Options) -> dict[str, int]:
    try:
        return {name: int(sum(_samples(options, f"hse_serve_{name}_total"))) for name in ("requests", "errors")}
    except (OSError, HTTPException, ValueError) as error:
        log.warning("The counts cannot be read: %s", error)
        return {}
