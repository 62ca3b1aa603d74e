"""What Ray Train does around the work on each worker: the process group, an ear for SIGTERM, and an end in order.

In: settings of the cluster. Out: Ray Train's configuration of torch. Where Ray takes a healthy worker group apart, to
form one of another size (`cluster.workers = "2..4"`), the workers are first asked to stop as SIGTERM would ask them:
after the step that is under way, with a checkpoint. So a resize repeats nothing; without this it would cost what was
done since the last checkpoint.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.torch import TorchConfig

from hse_dist import preemption
from hse_dist.config import ClusterSettings

POLL_SECONDS = 0.2
log = logging.getLogger(__name__)


def torch_config(settings: ClusterSettings) -> TorchConfig:
    """Ray Train's configuration for `settings`."""
    grace = float(settings.grace_seconds)

    class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            # in the main thread of each worker, where alone a signal can be caught; the work runs in another one
            worker_group.execute(preemption.listen)
            super().on_start(worker_group, backend_config)

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            stop_in_order(worker_group, grace)
            super().on_shutdown(worker_group, backend_config)

    class Configuration(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            return Backend

    backend = "gloo" if settings.device == "cpu" else "cpu:gloo,cuda:nccl"
    return Configuration(backend=backend, timeout_s=settings.timeout_seconds)


def stop_in_order(worker_group: Any, grace_seconds: float) -> None:
    """Let workers that all work end with a checkpoint, within `grace_seconds`; does nothing where they have ended, or
    where one has failed, as the others wait for it.

    Args:
        worker_group: Ray Train's; runs in its controller.
    """
    status = worker_group.get_latest_poll_status()
    if status is None or status.errors or status.finished:
        return
    limit, workers = time.monotonic() + grace_seconds, worker_group.get_workers()
    try:
        worker_group.execute(preemption.ask)
        while time.monotonic() < limit:
            # not by the group's own poll, which is over; what workers report, and would wait with, is taken and dropped
            states = ray.get([worker.actor.poll_status.remote() for worker in workers], timeout=grace_seconds)
            if any(state.error for state in states) or not any(state.running for state in states):
                return
            time.sleep(POLL_SECONDS)
    except RayError as error:
        log.warning("A worker was lost while the workers stopped, and the last checkpoint counts: %s", error)
    else:
        log.warning("No checkpoint within %.0f s (cluster.grace_seconds): the last one counts", grace_seconds)
