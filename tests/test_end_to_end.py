"""Logs in, recommendations out: the whole path on Ray Train with two workers, and the mistakes a user can make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from hse_dist.cli.main import main
from hse_dist.config import parse_config
from hse_dist.errors import ResourceError, RunFolderError

USERS, ITEMS, CLUSTERS = 400, 120, 8


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """Users who like one of eight clusters of items; partitioned Parquet."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("log")
    users = np.repeat(np.arange(USERS), 12)
    cluster = users % CLUSTERS
    noise = rng.random(len(users)) < 0.1
    own = rng.integers(0, ITEMS // CLUSTERS, len(users)) * CLUSTERS + cluster
    items = np.where(noise, rng.integers(0, ITEMS, len(users)), own)
    names = np.array([f"item-{i:03d}" for i in range(ITEMS)])[items]
    for day in range(2):
        part = slice(day, None, 2)
        (folder / f"day={day}").mkdir()
        table = pa.table({"who": users[part] + 1000, "what": names[part], "when": np.arange(len(users))[part]})
        pq.write_table(table, folder / f"day={day}" / "part.parquet")
    return folder


def make_config(folder: Path, log: Path, **changes):
    raw = {
        "run": {"folder": str(folder / "run")},
        "data": {
            "source": str(log),
            "folder": str(folder / "data"),
            "columns": {"user": "who", "item": "what", "timestamp": "when"},
            "users_per_row_group": 32,
        },
        "tables": {"item": {"dims": 64, "live": 8, "chunk_width": 8}},
        "model": {"row_norm": "unit"},
        "sparsity": {"start": "random", "schedule": {"interval": 5}, "budget": {"ceiling": 24}},
        "train": {"epochs": 6, "batch_size": 32, "negatives": 64, "learning_rate": 0.3, "log_every": 5},
        "cluster": {"workers": 2},
    }
    for path, value in changes.items():
        *sections, name = path.split("__")
        table = raw
        for section in sections:
            table = table[section]
        table[name] = value
    return parse_config(raw, "of a test")


@pytest.mark.ray
def test_whole_path_with_two_workers(shared_ray, tmp_path, log, capfd):
    from hse_dist.evaluate.driver import evaluate
    from hse_dist.export.writer import export
    from hse_dist.sparsity.start import StartFolder
    from hse_dist.train.driver import train

    config = make_config(tmp_path, log)
    summary = train(config)
    run = Path(config.run.folder)
    assert summary["steps"] > 20 and summary["resumed_from"] is None and summary["live_entries"] == 8 * ITEMS
    assert summary["best_valid"] > 2 * summary["start_valid"], "training taught nothing"
    journal = [json.loads(line) for line in (run / "topology.jsonl").read_text().splitlines()]
    assert len(journal) > 2 and {entry["live"] for entry in journal} == {8 * ITEMS}
    assert all(entry["grown"] > 0 for entry in journal[1:])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"train", "validate", "rewire"}
    assert max(line["wire_bytes"]["gradients"] for line in lines if line["kind"] == "train") > 0

    again = train(config)
    assert again["resumed_from"] == again["steps"] == summary["steps"]
    with pytest.raises(RunFolderError, match=r"train\.learning_rate"):
        train(make_config(tmp_path, log, train__learning_rate=0.2))

    metrics = evaluate(config)
    assert metrics["bytes_per_item"] == 64.0 and metrics["users"] > 10 and metrics["slots_per_live"] >= 1.0
    assert metrics["ndcg@100"] > 0.3 and 0 < metrics["coverage"] <= 1
    assert pq.read_table(run / "evaluation" / "test-users.parquet").num_rows == metrics["users"]

    result = export(config)
    matrix = sp.load_npz(Path(result["folder"]) / "items.npz")
    assert matrix.shape == (ITEMS, 64) and matrix.nnz == metrics["live_entries"]
    start = StartFolder(run / "start")
    offsets, columns, _ = start.entries()
    moved = matrix.astype(bool) != sp.csr_matrix((np.ones(len(columns)), columns, offsets), matrix.shape).astype(bool)
    assert moved.nnz > 0.1 * matrix.nnz, "the trained tables still have the columns of the start"

    assert main(["recommend", result["folder"], "--items", "item-003,item-011,nobody", "-k", "5"]) == 0
    answer = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert answer["unknown"] == ["nobody"]
    same = [int(item.removeprefix("item-")) % CLUSTERS == 3 for item in answer["items"]]
    assert len(same) == 5 and np.mean(same) >= 0.6, "neighbours of cluster 3 are of other clusters"


@pytest.mark.ray
def test_more_workers_than_cores_are_refused_with_what_is_there(shared_ray, tmp_path, log):
    from hse_dist.train.driver import train

    with pytest.raises(ResourceError, match="needs 64 CPU, has 4"):
        train(make_config(tmp_path, log, cluster__workers=64))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__source": "/nowhere/log.parquet"}, "/nowhere/log.parquet"),
        ({"data__columns": {"user": "who", "item": "product"}}, "product"),
        (
            {"tables__item": {"dims": "items", "live": 200}, "sparsity__budget": {"ceiling": 200}},
            "fewer items|fewer than",
        ),
        ({"run__resume": "must"}, "no checkpoint"),
    ],
)
def test_mistakes_are_one_message_and_leave_no_run(tmp_path, log, changes, message):
    from hse_dist.errors import UserError
    from hse_dist.train.driver import train

    with pytest.raises(UserError, match=message):
        train(make_config(tmp_path, log, cluster__workers=0, **changes))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "start").exists()
