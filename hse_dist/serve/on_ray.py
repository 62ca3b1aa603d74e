"""The application on a Ray of this machine, which begins and ends with it.

In: options. Out: a server, for the block. Ray's own sockets are on loopback, behind a token, and so is the HTTP server
unless its options say otherwise. The end is graceful: requests under way are answered, others are told to come again.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path

from hse_dist.errors import HseError, ResourceError, ServeError
from hse_dist.loopback import keep_to_loopback, keep_to_ourselves
from hse_dist.serve.asking import SECONDS, Running, get, total
from hse_dist.serve.options import Options
from hse_dist.serve.refusals import HEALTHZ

WAIT_SECONDS = 0.2
SECONDS_TO_START = 300.0
SECONDS_TO_SPARE = 5.0
"""That Ray Serve gives a request beyond its time, which the application looks after itself."""
APPLICATION = "hse-dist"
HEALTH = "/-/healthz"
"""Of the proxy: a replica that is made anew is no reason to end."""
WORKERS = {
    # threads of Ray Serve's own, which only pass a request on; without them a replica answers half as many again
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""Environment of Ray's workers; this process, which waits for a call, needs that loop."""
log = logging.getLogger(__name__)


@contextmanager
def serving_on_ray(options: Options) -> Iterator[Running]:
    """Serve for the block.

    Raises:
        ResourceError: Ray did not start. ServeError: Ray Serve did not.
    """
    with _ray(options):
        _deploy(options)
        yield Running(partial(get, options, HEALTH), partial(_drain, options), partial(total, options))


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
    http = HTTPOptions(
        host=options.host, port=options.port, request_timeout_s=options.limits.seconds + SECONDS_TO_SPARE
    )
    target = serve.RunTarget(application(options.model_dump()), APPLICATION, "/", quiet)
    try:
        serve.start(proxy_location="HeadOnly", http_options=http, logging_config=quiet)
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        _wait_until_it_answers(options)
    except HseError:
        raise
    except Exception as error:  # Ray Serve raises whatever it likes here
        raise ServeError(f"Ray Serve did not start: {error}") from error


def _wait_until_it_answers(options: Options) -> None:
    from ray import serve

    end, state = time.monotonic() + SECONDS_TO_START, ""
    while time.monotonic() < end:
        application = serve.status().applications.get(APPLICATION)
        state = application.status if application else "unknown"
        if application and state == "DEPLOY_FAILED":
            raise ServeError(f"The replicas did not start: {application.message}")
        if state == "RUNNING":
            with suppress(OSError, HTTPException):  # the proxy may be later than they
                if b'"ok"' in get(options, HEALTHZ):
                    return
        time.sleep(WAIT_SECONDS)
    raise ServeError(f"Nothing answered within {SECONDS_TO_START:.0f} s: the application is {state}.")


def _drain(options: Options) -> None:
    """Until no request is under way: what Serve does with an application that goes is to answer 404, and to kill."""
    from ray import serve

    from hse_dist.serve.replica import BOARD

    end = time.monotonic() + options.limits.seconds
    try:
        serve.get_deployment_handle(BOARD, APPLICATION).end.remote().result(timeout_s=SECONDS)
        time.sleep(2 * options.look_seconds)  # the replicas hear of it, and then tell what is under way
        while time.monotonic() < end and total(options, "hse_serve_in_flight") > 0:
            time.sleep(WAIT_SECONDS)
    except Exception as error:  # Ray raises whatever it likes here; the end is near anyway
        log.warning("Requests under way may be lost: %s", error)
