"""The training job: prepare if needed, start, train.

In: a configuration. Out: a run folder whose best checkpoint is the result, and a summary. Each part is done once: a
second call finds the prepared histories, the start and the newest checkpoint, and goes on.
"""

from __future__ import annotations

import logging
import time
import uuid
from functools import partial
from typing import Any

from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.cluster import connect, run_workers
from hse_dist.config import Config
from hse_dist.data.feature_rows import FeatureRows
from hse_dist.data.made_with import is_prepared
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.errors import PreemptedError, RunFolderError
from hse_dist.evaluate.starts import worth
from hse_dist.preemption import TELL_AGAIN_SECONDS, ending, stoppable
from hse_dist.progress import busy, telling
from hse_dist.run_folder import RunFolder
from hse_dist.sparsity.own import own_score
from hse_dist.sparsity.schedule import live_counts
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.start import make_start
from hse_dist.sparsity.start.cut import NewSelection
from hse_dist.sparsity.start.features import live_of_features, make_feature_start
from hse_dist.tasks import ray_is_running
from hse_dist.train.continued import check_predecessor
from hse_dist.train.sinks import check_sinks
from hse_dist.train.teacher import check_teacher, settings_of_teacher
from hse_dist.train.worker import train_worker

log = logging.getLogger(__name__)


def train(config: Config) -> dict[str, Any]:
    """Train; the summary has `run`, `steps`, `seconds` (in all), `resumed_from` and the validation of start and best.

    Raises:
        HseError: settings, data, resources or workers are at fault.
        PreemptedError: SIGTERM came.
    """
    began = time.perf_counter()
    folder = RunFolder(config)
    check_sinks(config.metrics)
    if config.sparsity.drop.function is not None:
        own_score(config.sparsity.drop.function)  # refused here rather than at the first rewire
    if config.train.teacher is not None:
        settings_of_teacher(config)  # a wrong name is refused before a log is prepared
    with connect(config.cluster, config.metrics.port), ending():
        _name_endpoint(config)
        if not is_prepared(config):
            log.info("No prepared histories in %s: preparing", config.data.folder)
            prepare(config)
        folder.claim()
        folder.claim_data(Prepared(config.data.folder))
        _check_resume(config, folder)
        check_teacher(config, Prepared(config.data.folder))
        actor = _start_server(config, folder)
        state = _make_start(config, folder, actor)
        stopping = stoppable(config.cluster.grace_seconds, None if actor is None else partial(_ask_to_stop, actor))
        with stopping, telling("train", folder.progress / "train", "users") as meter:
            arguments = {"config": config, "server": actor, "server_state": state, "meter": meter}
            summary = run_workers(train_worker, arguments, config, "train", resumes=True)
    if summary["preempted"]:
        raise PreemptedError(
            f"Stopped by SIGTERM after step {summary['steps']}, with a checkpoint.",
            cause="Run it again to go on.",
        )
    return {**summary, "seconds": time.perf_counter() - began, "seconds_of_training": summary["seconds"]}


def _name_endpoint(config: Config) -> None:
    """Say where the metrics can be scraped."""
    if "prometheus" in config.metrics.sinks and ray_is_running():
        import ray

        places = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in ray.nodes()]
        log.info("Prometheus finds the metrics at %s", ", ".join(places[:8]))


def _check_resume(config: Config, folder: RunFolder) -> None:
    newest = CheckpointStore.of(config).latest()
    if newest is not None and config.run.resume == "never":
        raise RunFolderError(
            f"The run folder {folder.path} already has a checkpoint of step {newest.step}.",
            cause="Go on from it, or choose another folder.",
            setting="run.resume",
            value="never",
        )
    if newest is None and config.run.resume == "must":
        raise RunFolderError(f"The run folder {folder.path} has no checkpoint.", setting="run.resume", value="must")


def _ask_to_stop(actor: Any) -> None:
    import ray

    ray.get(actor.ask_to_stop.remote(), timeout=TELL_AGAIN_SECONDS)


def _start_server(config: Config, folder: RunFolder) -> Any:
    """The SparsityServer's actor; None without workers, where rank 0 holds the server."""
    if not config.cluster.workers:
        return None
    from hse_dist.sparsity.actor import start_server

    name = f"SparsityServer-{uuid.uuid4().hex[:8]}"
    fingerprint, snapshot = config.sparsity.model_dump_json(), folder.server.resolve()
    return start_server(config.sparsity, fingerprint, name, snapshot, config.cluster.warn_seconds)


def _make_start(config: Config, folder: RunFolder, actor: Any) -> dict[str, Any]:
    """Make the start folder where it is missing, its cut decided by the server; the server's state after that."""
    server = SparsityServer(config.sparsity, 0, 1)
    if config.tables.item.kind == "dense":
        return server.state_dict()
    if config.run.continues is not None:
        if CheckpointStore.of(config).latest() is None:  # else it has gone on from there already
            check_predecessor(config, Prepared(config.data.folder))
        return server.state_dict()
    began = time.perf_counter()
    new_selection: NewSelection = server.new_cut
    if actor is not None:
        from hse_dist.sparsity.remote import RemoteCut

        new_selection = partial(RemoteCut, actor, float(config.cluster.timeout_seconds))
    prepared = Prepared(config.data.folder)
    with busy("train", "start") as seen:
        start = make_start(config, prepared, folder.start, new_selection, partial(worth, prepared), seen)
    live, of_features = start.live_entries, 0
    if config.tables.features:
        features = FeatureRows.of(prepared, config.tables.features)
        with busy("train", "features' start"):
            live += make_feature_start(config, prepared, features, start, folder.start_of_features).live_entries
        of_features = live_of_features(config, features)
    log.info("The start %s is there after %.1f s", config.sparsity.start, time.perf_counter() - began)
    server.record_start(config.sparsity.start, live_counts(config, live, start.rows, of_features))
    return server.state_dict()
