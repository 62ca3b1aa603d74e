"""Where work runs: a Ray cluster, or this process alone.

In: a configuration, and a function of the ranks. Out: what rank 0 returned. Ray Train owns the workers, their process
group and their restarts; with `cluster.workers = 0` the same function runs here, on a gloo group of one.
"""

from __future__ import annotations

import ctypes
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hse_dist.config import ClusterSettings, Config
from hse_dist.errors import HseError, ResourceError, TrainingError
from hse_dist.files import read_json, write_json
from hse_dist.log import set_levels
from hse_dist.ranks import Ranks, free_address, process_group
from hse_dist.tasks import ray_is_running

Work = Callable[[Ranks, dict[str, Any]], Any]
log = logging.getLogger(__name__)


@contextmanager
def connect(settings: ClusterSettings) -> Iterator[None]:
    """A Ray cluster for the block if workers are asked for; one that was there before stays.

    Raises:
        ResourceError: the cluster cannot be reached, or has less than the workers need.
    """
    if settings.workers == 0 or ray_is_running():
        if settings.workers:
            _check_resources(settings)
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    # a relative folder means the same in a worker as on the command line
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if not address:
        # nobody takes a node of a local cluster away
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray

    started = time.perf_counter()
    local: dict[str, Any] = {"num_cpus": os.cpu_count(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.WARNING,
            runtime_env=_runtime_env(local=not address),
            **({} if address else local),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"The Ray cluster cannot be reached: {error}", setting="cluster.address", value=address
        ) from None
    log.info("Ray is up after %.1f s", time.perf_counter() - started)
    try:
        _check_resources(settings)
        yield
    finally:
        ray.shutdown()


def _runtime_env(*, local: bool) -> dict[str, Any]:
    """What Ray's worker processes get: quiet logs, and on this machine the package that runs here."""
    environment: dict[str, Any] = {"worker_process_setup_hook": "hse_dist.log.set_up_worker"}
    if local:
        # the hook is imported before Ray hands on the driver's own path
        here = str(Path(__file__).resolve().parents[1])
        environment["env_vars"] = {"PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
    return environment


def _check_resources(settings: ClusterSettings) -> None:
    """Refuse at once what Ray would wait for without end."""
    import ray

    there = ray.cluster_resources()
    wanted = {"CPU": settings.workers * settings.cpus_per_worker}
    if settings.device == "cuda":
        wanted["GPU"] = settings.workers
    short = [f"{need} {name}, has {there.get(name, 0):g}" for name, need in wanted.items() if there.get(name, 0) < need]
    if short:
        raise ResourceError(
            f"The cluster needs {'; needs '.join(short)}.",
            cause="Use fewer workers or a larger cluster.",
            setting="cluster.workers",
            value=settings.workers,
        )


def run_workers(work: Work, arguments: dict[str, Any], config: Config, name: str) -> Any:
    """`work(ranks, arguments)` on every rank; what rank 0 returned (JSON).

    Args:
        work: a module-level function; it may use `ray.train` when `ray_is_running()`.
        name: of the job, for Ray and for messages.

    Raises:
        HseError: as a worker raised it.
        TrainingError: a worker failed otherwise, more often than `cluster.max_failures` allows.
    """
    settings = config.cluster
    if settings.workers == 0:
        device = torch.device(settings.device)
        prepare_process(settings)
        with process_group(0, 1, free_address(), device, settings.timeout_seconds) as ranks:
            return work(ranks, arguments)
    return _run_on_ray(work, arguments, config, name)


def _run_on_ray(work: Work, arguments: dict[str, Any], config: Config, name: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    settings, folder = config.cluster, Path(config.run.folder).resolve()
    result = folder / f".{name}.result.json"
    result.unlink(missing_ok=True)
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={"work": work, "arguments": arguments, "settings": settings, "result": str(result)},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.device == "cuda",
            resources_per_worker={"CPU": settings.cpus_per_worker} | ({"GPU": 1} if settings.device == "cuda" else {}),
        ),
        run_config=RunConfig(
            name=f"{name}-{time.time_ns()}",
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
        torch_config=TorchConfig(
            backend="gloo" if settings.device == "cpu" else "cpu:gloo,cuda:nccl", timeout_s=settings.timeout_seconds
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        cause = _hse_error(error)
        if cause is not None:
            raise cause from None
        raise TrainingError(f"The workers of {name} failed: {error}") from error
    return _take(result, name)


def _take(result: Path, name: str) -> Any:
    answer = read_json(result, f"result of {name}")
    result.unlink()
    return answer


def _hse_error(error: BaseException) -> HseError | None:
    """The project's own error inside what Ray Train raises."""
    failures = getattr(error, "worker_failures", {}) or {}
    for failure in (*failures.values(), error):
        inner: BaseException | None = failure
        while inner is not None:
            if isinstance(inner, HseError):
                return inner
            inner = getattr(inner, "cause", None) or inner.__cause__
    return None


def _ray_worker(call: dict[str, Any]) -> None:
    import torch.distributed as dist

    settings: ClusterSettings = call["settings"]
    prepare_process(settings)
    ranks = Ranks(torch.device(settings.device))
    answer = call["work"](ranks, call["arguments"])
    dist.barrier()
    if ranks.rank == 0:
        write_json(call["result"], answer)


def prepare_process(settings: ClusterSettings) -> None:
    """Threads, allocator and log levels of a process that does arithmetic."""
    torch.set_num_threads(settings.cpus_per_worker)
    set_levels()
    # glibc gives blocks of some MiB back to the system after each use; a step would fault in the same pages again and
    # again (measured: 37 ms of a 140 ms step)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_mmap_threshold, m_trim_threshold = -3, -1
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)
