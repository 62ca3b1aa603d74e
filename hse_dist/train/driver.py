"""The training job: prepare if needed, start, train.

In: a configuration. Out: a run folder whose best checkpoint is the result, and a summary. Each part is done once: a
second call finds the prepared histories, the start and the newest checkpoint, and goes on.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.cluster import connect, run_workers
from hse_dist.config import Config
from hse_dist.data.prepare import is_prepared, prepare
from hse_dist.data.prepared import Prepared
from hse_dist.errors import RunFolderError
from hse_dist.run_folder import RunFolder
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.start import make_start
from hse_dist.train.worker import train_worker

log = logging.getLogger(__name__)


def train(config: Config) -> dict[str, Any]:
    """Train; the summary has `run`, `steps`, `seconds` (in all), `resumed_from` and the validation of start and best.

    Raises:
        HseError: settings, data, resources or workers are at fault.
    """
    began = time.perf_counter()
    folder = RunFolder(config)
    with connect(config.cluster):
        if not is_prepared(config):
            log.info("No prepared histories in %s: preparing", config.data.folder)
            prepare(config)
        folder.claim()
        _check_resume(config, folder)
        state = _make_start(config, folder)
        arguments: dict[str, Any] = {"config": config, "server": None, "server_state": state}
        if config.cluster.workers:
            from hse_dist.sparsity.actor import start_server

            name = f"SparsityServer-{uuid.uuid4().hex[:8]}"
            arguments["server"] = start_server(config.sparsity, config.sparsity.model_dump_json(), name)
        summary = run_workers(train_worker, arguments, config, "train")
    return {**summary, "seconds": time.perf_counter() - began, "seconds_of_training": summary["seconds"]}


def _check_resume(config: Config, folder: RunFolder) -> None:
    newest = CheckpointStore(folder.checkpoints, config.checkpoint.keep).latest()
    if newest is not None and config.run.resume == "never":
        raise RunFolderError(
            f"The run folder {folder.path} already has a checkpoint of step {newest.step}.",
            cause="Go on from it, or choose another folder.",
            setting="run.resume",
            value="never",
        )
    if newest is None and config.run.resume == "must":
        raise RunFolderError(f"The run folder {folder.path} has no checkpoint.", setting="run.resume", value="must")


def _make_start(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Make the start folder where it is missing; the SparsityServer's state after the first cut."""
    server = SparsityServer(config.sparsity, 0, 1)
    if config.tables.item.kind == "packed":
        began = time.perf_counter()
        start = make_start(config, Prepared(config.data.folder), folder.start, server.new_cut)
        server.record_start(config.sparsity.start, start.live_entries)
        log.info("The start %s is there after %.1f s", config.sparsity.start, time.perf_counter() - began)
    return server.state_dict()
