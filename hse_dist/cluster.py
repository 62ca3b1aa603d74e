"""Where work runs: a Ray cluster, or this process alone.

In: a configuration, and a function of the ranks. Out: what rank 0 returned. Ray Train owns the workers, their process
group and their restarts; with `cluster.workers = 0` the same function runs here, on a gloo group of one.

Ray Train restarts workers whatever they raised. An error that would come again at once (`LASTING`) is therefore written
beside the result; the next worker group of the job finds it and ends without work, and the driver raises it.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from hse_dist import errors
from hse_dist.config import ClusterSettings, Config
from hse_dist.errors import HseError, NumericError, PlanError, ResourceError, TrainingError, UserError
from hse_dist.files import read_json, write_json
from hse_dist.log import set_levels
from hse_dist.loopback import keep_to_loopback, keep_to_ourselves
from hse_dist.ranks import Ranks, free_address, process_group
from hse_dist.tasks import ray_is_running

Work = Callable[[Ranks, dict[str, Any]], Any]
LASTING = (UserError, NumericError, PlanError)
"""Errors that a restart does not mend."""
log = logging.getLogger(__name__)


@contextmanager
def connect(settings: ClusterSettings, metrics_port: int | None = None) -> Iterator[None]:
    """A Ray cluster for the block if workers are asked for; one that was there before stays.

    A local cluster, its Prometheus endpoint included, is on loopback: nobody outside this machine reaches it.

    Args:
        metrics_port: of a local cluster's Prometheus endpoint; without it a free one.

    Raises:
        ResourceError: the cluster cannot be reached, or has less than the workers need; or this process has no CUDA
            device and is to use one.
    """
    if settings.workers == 0:
        usable_device(settings.device)
    if settings.workers == 0 or ray_is_running():
        if settings.workers:
            _check_resources(settings)
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    # a relative folder means the same in a worker as on the command line
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if not sys.stderr.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # read by this process, before what its workers say
    if not address:
        keep_to_loopback()
        keep_to_ourselves()
        # nobody takes a node of a local cluster away
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray

    started = time.perf_counter()
    local: dict[str, Any] = {"num_cpus": os.cpu_count(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    local["_metrics_export_port"] = metrics_port
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.WARNING,
            runtime_env=_runtime_env(address),
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


def _runtime_env(address: str | None) -> dict[str, Any]:
    """What Ray's worker processes get: quiet logs, and on this machine the package that runs here."""
    environment: dict[str, Any] = {"worker_process_setup_hook": "hse_dist.log.set_up_worker"}
    if address and re.fullmatch(r"[^/]+:\d+", address):
        # helpers of Ray Train ask for the cluster by themselves, and may find another one on this machine
        environment["env_vars"] = {"RAY_ADDRESS": address}
    elif not address:
        # the hook is imported before Ray hands on the driver's own path
        here = str(Path(__file__).resolve().parents[1])
        environment["env_vars"] = {"PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
    return environment


def _check_resources(settings: ClusterSettings) -> None:
    """Refuse at once what Ray would wait for without end."""
    import ray

    there = ray.cluster_resources()
    wanted = {"CPU": settings.fewest * settings.cpus_per_worker}
    if settings.device == "cuda":
        wanted["GPU"] = settings.fewest
    short = [f"{need} {name}, has {there.get(name, 0):g}" for name, need in wanted.items() if there.get(name, 0) < need]
    if short:
        raise ResourceError(
            f"The cluster needs {'; needs '.join(short)}.",
            cause="Use fewer workers or a larger cluster.",
            setting="cluster.workers",
            value=settings.workers,
        )


def usable_device(name: str) -> torch.device:
    """The device of arithmetic in this process.

    Raises:
        ResourceError: there is none of this kind.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            "There is no CUDA device that torch can use here.",
            cause="Use the CPU, or a machine with a GPU, its driver and a torch built for CUDA.",
            setting="cluster.device",
            value=name,
        )
    return torch.device(name)


def run_workers(work: Work, arguments: dict[str, Any], config: Config, name: str, *, resumes: bool = False) -> Any:
    """`work(ranks, arguments)` on every rank; what rank 0 returned (JSON).

    Args:
        work: a module-level function; it may use `ray.train` when `ray_is_running()`.
        name: of the job, for Ray and for messages.
        resumes: whether the work stops when it is asked to (`preemption.py`) and goes on where it stopped, so that its
            ranks may become more or fewer; other work keeps to the fewest.

    Raises:
        HseError: as a worker raised it.
        TrainingError: a worker failed otherwise, more often than `cluster.max_failures` allows.
    """
    settings = config.cluster
    if settings.workers == 0:
        device = usable_device(settings.device)
        prepare_process(settings)
        keep_to_loopback()
        with process_group(0, 1, free_address(), device, settings.timeout_seconds) as ranks:
            return work(ranks, arguments)
    return _run_on_ray(work, arguments, config, name, elastic=resumes and settings.fewest < settings.most)


def _run_on_ray(work: Work, arguments: dict[str, Any], config: Config, name: str, *, elastic: bool) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from hse_dist.backend import torch_config

    settings, folder = config.cluster, Path(config.run.folder).resolve()
    # a worker that is stopped answers nothing, and must be given up as one that waits in vain for other ranks
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(settings.timeout_seconds)
    result, failure = (folder / f".{name}.{kind}.json" for kind in ("result", "error"))
    result.unlink(missing_ok=True)
    failure.unlink(missing_ok=True)
    call = {"work": work, "arguments": arguments, "settings": settings, "result": result, "failure": failure}
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config=call,
        scaling_config=ScalingConfig(
            num_workers=(settings.fewest, settings.most) if elastic else settings.fewest,
            elastic_resize_monitor_interval_s=settings.resize_seconds,
            use_gpu=settings.device == "cuda",
            resources_per_worker={"CPU": settings.cpus_per_worker} | ({"GPU": 1} if settings.device == "cuda" else {}),
            placement_strategy=settings.placement.upper(),
        ),
        run_config=RunConfig(
            name=f"{name}-{time.time_ns()}",
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
        torch_config=torch_config(settings),
    )
    try:
        trainer.fit()
    except Exception as error:
        cause = _lasting_error(failure) or _hse_error(error)
        if cause is not None:
            raise cause from None
        raise TrainingError(f"The workers of {name} failed: {error}") from error
    else:
        cause = _lasting_error(failure)
        if cause is not None:
            raise cause
    finally:
        failure.unlink(missing_ok=True)
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


def _write_lasting_error(path: Path, error: HseError) -> None:
    fields = {name: getattr(error, name) for name in ("what", "cause", "setting", "value")}
    content = json.loads(json.dumps({"kind": type(error).__name__, **fields}, default=str))
    # where this cannot be written, the worker's own exception tells it, after the restarts
    with suppress(OSError):
        write_json(path, content)


def _lasting_error(path: Path) -> HseError | None:
    """The error that a worker of this job wrote."""
    if not path.exists():
        return None
    fields = read_json(path, "error of a worker")
    try:
        kind = getattr(errors, fields.pop("kind"))
        if isinstance(kind, type) and issubclass(kind, HseError):
            return kind(**fields)
    except (AttributeError, KeyError, TypeError):
        pass
    return TrainingError(f"A worker failed, but what it wrote to {path} cannot be read.")


def _ray_worker(call: dict[str, Any]) -> None:
    import torch.distributed as dist

    if _lasting_error(call["failure"]) is not None:
        return  # to raise it here would be one more failure to restart after
    settings: ClusterSettings = call["settings"]
    prepare_process(settings)
    ranks = Ranks(torch.device(settings.device))
    try:
        answer = call["work"](ranks, call["arguments"])
    except LASTING as error:
        _write_lasting_error(call["failure"], error)
        raise
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


def release_memory() -> None:
    """Give free memory back to the system, after work that took much of it for a moment (see `prepare_process`)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
