"""What one rank does in a training job: build everything, left to right, and run the loop.

In: the ranks, the configuration, the SparsityServer's handle. Out: the summary of the run.
"""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from hse_dist.checkpoint.reading import fitting
from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.config import Config
from hse_dist.data.batch import log_chances
from hse_dist.data.feature_rows import FeatureRows
from hse_dist.data.prepared import Prepared
from hse_dist.data.stream import HistoryStream
from hse_dist.files import write_json
from hse_dist.placement import describe, write_placement
from hse_dist.progress import Meter
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.sparsity.client import GroupTransport, Transport
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.start import open_start
from hse_dist.sparsity.state import check_state
from hse_dist.sparsity.tables import make_table
from hse_dist.tables.sharded import DenseTable, PackedTable
from hse_dist.train.continued import continued_table, record_continued
from hse_dist.train.loop import Loop, Report
from hse_dist.train.step import Trainer
from hse_dist.train.teacher import TeacherTable

log = logging.getLogger(__name__)


def train_worker(ranks: Ranks, arguments: dict[str, Any]) -> dict[str, Any]:
    """Train on this rank.

    Args:
        arguments: `config`, `server`, the actor's handle or None where the process group carries the messages,
            `server_state`, and perhaps `meter`, the path of the note for who waits.
    """
    config: Config = arguments["config"]
    folder = RunFolder(config)
    prepared = Prepared(config.data.folder)
    store = CheckpointStore.of(config)
    resumed, ahead, state = store.open_latest(ranks), 0, arguments["server_state"]
    if resumed is not None:
        folder.check_checkpoint(resumed.facts, resumed.address)
    features = FeatureRows.of(prepared, config.tables.features) if config.tables.features else None
    layout = store.load_shared(resumed) if resumed is not None else None
    table: PackedTable | DenseTable
    dense: dict[str, np.ndarray] = {}
    if resumed is None and config.run.continues is not None:
        continued, dense = continued_table(config, prepared, ranks)
        table, state = continued, record_continued(config, continued)
    else:
        start = open_start(config, folder.start) if config.tables.item.kind == "packed" else None
        table = make_table(config, features.rows if features else prepared.items, start, ranks, layout)
    stream = HistoryStream(
        prepared,
        config.data.stream,
        batch_size=config.train.batch_size,
        seed=config.run.seed,
        rank=ranks.rank,
        ranks=ranks.size,
        on_bad_file=config.data.on_bad_file,
        features=features.users if features else (),
    )
    steps = sum(stream.batches_in(epoch) for epoch in range(config.train.epochs))
    if resumed is not None:
        with fitting(resumed):
            stream.load_state_dict(resumed.facts["stream"])
            ahead = steps - steps_left(stream, config.train.epochs) - resumed.step
            state = check_state(resumed.facts["server"])
    transport = join_server(config, arguments.get("server"), ranks, steps, state)
    counts = features.counts(prepared) if features else prepared.counts()
    chances = chances_of(config, prepared)
    teacher = TeacherTable.of(config, prepared, ranks)
    trainer = Trainer(config, table, transport, ranks, steps, ahead, counts, features, chances, teacher)
    trainer.take_up(state)
    if dense:
        trainer.dense.load_state_dict(dense)
    report = reporter(ranks, config.cluster.most > 0)
    meter = Meter(arguments.get("meter", ""))
    loop = Loop(config, trainer, stream, prepared, store, folder, report, meter)
    record_placement(ranks, folder, transport)
    with living(transport, ranks, loop):
        return loop.run(resumed)


def chances_of(config: Config, prepared: Prepared) -> np.ndarray | None:
    """The logarithms of items' chances to be candidates, where the loss corrects for them."""
    if config.model.loss != "softmax":
        return None
    settings, users = config.train, prepared.users("train")
    return log_chances(prepared.counts(), users, settings.batch_size, settings.negatives)


def record_placement(ranks: Ranks, folder: RunFolder, transport: Transport) -> None:
    """Write down where the ranks of this worker group and the server run; a collective call. Without Ray: nothing."""
    if isinstance(transport, GroupTransport):
        return
    import ray

    from hse_dist.sparsity.remote import RayTransport

    assert isinstance(transport, RayTransport)
    places = ranks.gather((ray.util.get_node_ip_address(), os.getpid()))
    if ranks.rank == 0:
        log.info("%s", describe(write_placement(folder.placement, places, transport.where())))


@contextmanager
def living(transport: Transport, ranks: Ranks, loop: Loop) -> Iterator[None]:
    """Let the SparsityServer's actor know, for the block, that this rank lives."""
    if isinstance(transport, GroupTransport):
        yield
        return
    from hse_dist.sparsity.remote import Pulse, RayTransport

    assert isinstance(transport, RayTransport)
    pulse = Pulse(transport, ranks.size, lambda: loop.step)
    try:
        yield
    finally:
        pulse.end()


def steps_left(stream: HistoryStream, epochs: int) -> int:
    """Steps from the stream's position to the end of the run, on these ranks."""
    if stream.epoch_number >= epochs:
        return 0
    return stream.batches_left + sum(stream.batches_in(epoch) for epoch in range(stream.epoch_number + 1, epochs))


def join_server(config: Config, actor: Any, ranks: Ranks, steps: int, state: dict[str, Any]) -> Transport:
    """This rank's way to the SparsityServer, which takes up `state`."""
    if actor is None:

        def make_server() -> SparsityServer:
            server = SparsityServer(config.sparsity, steps, ranks.size)
            server.load_state_dict(state)
            return server

        return GroupTransport(ranks, make_server)
    from hse_dist.sparsity.remote import RayTransport

    attempt: list[Any] = [uuid.uuid4().hex]
    dist.broadcast_object_list(attempt)
    limit, again = config.cluster.timeout_seconds, config.cluster.warn_seconds
    transport = RayTransport(actor, attempt[0], ranks.rank, limit, ranks.meter, again)
    transport.join(ranks.size, steps, config.sparsity.model_dump_json(), state)
    return transport


def reporter(ranks: Ranks, on_ray: bool) -> Report:
    """Tells Ray Train of a checkpoint by a small pointer to it; does nothing where no Ray Train runs this worker.

    Ray takes only checkpoints below its own storage path, and its copy would double the tables on disk.
    """
    if not on_ray:
        return lambda metrics, path: None
    import ray.train

    def report(metrics: dict[str, Any], path: str) -> None:
        if ranks.rank:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            write_json(Path(folder) / "pointer.json", {"checkpoint": path})
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    return report
