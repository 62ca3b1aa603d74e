"""A run whose cluster grows and shrinks under it: ranks come and go, and every history is read once an epoch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.config import Config
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.run_folder import RunFolder
from hse_dist.testing.recording import Recorded, recorded
from hse_dist.testing.runs import as_toml, small_config

EPOCHS = 12
LIMIT = 120.0


@pytest.fixture
def cluster() -> Iterator[object]:
    """A head without cores for workers, to which nodes can be added; its address is in `address`."""
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False},
    )
    yield made
    made.shutdown()


def wait_for(what: str, there: Callable[[], bool], driver: subprocess.Popen) -> None:
    limit = time.monotonic() + LIMIT
    while not there():
        assert driver.poll() is None, f"the run ended before {what}"
        assert time.monotonic() < limit, f"no {what} within {LIMIT} s"
        time.sleep(0.1)


def trained(run: Path, groups: int, ranks: int, steps: int) -> bool:
    """Whether the newest of `groups` worker groups has so many ranks, and so many steps behind it."""
    found = recorded(run)
    return len(found) >= groups and found[-1].ranks == ranks and len(found[-1].steps) >= steps


def committed(groups: list[Recorded]) -> list[tuple[int, ...]]:
    """Histories of the steps that count: of each group those before the first step of the next one."""
    firsts = [min(group.steps) for group in groups[1:]] + [10**9]
    return [
        history
        for group, first in zip(groups, firsts, strict=True)
        for step, histories in group.steps.items()
        if step < first
        for history in histories
    ]


def training_histories(config: Config) -> Counter[tuple[int, ...]]:
    matrix = Prepared(config.data.folder).matrix("train")
    return Counter(tuple(sorted(part.tolist())) for part in np.split(matrix.indices, matrix.indptr[1:-1]) if len(part))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_ranks_come_and_go_and_no_history_is_read_twice_or_skipped(tmp_path, cluster):
    changes = {"train__epochs": EPOCHS, "cluster__workers": "1..2", "cluster__resize_seconds": 2.0}
    changes |= {"train__checkpoint_every": 50, "cluster__address": cluster.address, "data__synthetic__users": 900}
    config = small_config(tmp_path / "run", tmp_path / "data", **changes)
    prepare(config)
    settings = tmp_path / "run.toml"
    run = RunFolder(config).path
    settings.write_text(as_toml(config))
    words = [sys.executable, "-m", "hse_dist.testing.recording", "train", str(settings)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment) as driver,
    ):
        try:
            wait_for("20 steps of one rank", lambda: trained(run, 1, 1, 20), driver)
            node = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
            wait_for("20 steps of two ranks", lambda: trained(run, 2, 2, 20), driver)
            cluster.remove_node(node, allow_graceful=False)
            assert driver.wait(LIMIT * 2) == 0, (tmp_path / "log").read_text()[-3000:]
        finally:
            driver.kill()

    groups = recorded(run)
    assert [group.ranks for group in groups] == [1, 2, 1]
    alone, both, last = groups
    assert min(both.steps) == max(alone.steps) + 1, "what was done before the cluster grew was done again"
    assert 1 < min(last.steps) <= max(both.steps) + 1
    once = training_histories(config)
    assert Counter(committed(groups)) == Counter({history: count * EPOCHS for history, count in once.items()})

    newest = CheckpointStore.of(config).latest()
    assert newest is not None and newest.facts["stream"]["epoch"] == EPOCHS
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == sorted(set(steps)), "a step is counted twice"
    journal = [json.loads(line) for line in (run / "topology.jsonl").read_text().splitlines()]
    assert [entry["version"] for entry in journal] == list(range(len(journal)))
    assert {entry["live"] for entry in journal} == {journal[0]["live"]}
