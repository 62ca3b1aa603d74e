"""A run folder, metrics of users, histories to answer and a downloaded data set that somebody has changed: what they
hold, or one `HseError`; and no file is read without end."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from hse_dist.config import Config
from hse_dist.data import catalog
from hse_dist.data.prepared import Prepared
from hse_dist.evaluate.bootstrap import compare
from hse_dist.evaluate.metrics import METRICS
from hse_dist.export.batch import recommend_file
from hse_dist.export.format import RowBlock, load_export, write_export
from hse_dist.files import read_json
from hse_dist.inspect.place import open_place
from hse_dist.report.page import report
from hse_dist.run_folder import RunFolder, stored_config
from hse_dist.sparsity.start.folder import StartFolder
from hse_dist.testing.hostile import bomb, damaged, few_and_many, hostile_json, hostile_table, survives

LINES = {
    "metrics.jsonl": [
        {"kind": "validate", "step": 0, "ndcg@100": 0.2, "recall@20": 0.1, "recall@50": 0.3},
        {"kind": "train", "step": 4, "loss": 0.7, "steps_per_second": 3.0, "wait_share": 0.1, "wire_bytes": {"ids": 3}},
    ],
    "topology.jsonl": [
        {"version": 0, "step": 0, "live": 40, "goal": 40, "start": "random", "policy": {"budget": "global"}},
        {"version": 1, "step": 3, "live": 40, "dropped": 3, "grown": 3, "restored": 0, "dead_columns": 0.5,
         "tables": {"item": {"head": 3, "middle": 2, "tail": 1}}, "seconds": 0.1, "explored": 0.2, "mean_age": None},
    ],
}  # fmt: skip
JSON = ("config.json", "data.json", "owner.json", "evaluation/test.json")


class Data:
    fingerprint = "0" * 64


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def run(work: Path) -> Path:
    folder = work / "good"
    config = Config.model_validate_json(json.dumps({"run": {"folder": str(folder)}}))
    RunFolder(config).claim()
    RunFolder(config).claim_data(Data())
    RunFolder(config).take_over("a")
    for name, lines in LINES.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "evaluation").mkdir()
    (folder / "evaluation/test.json").write_text(json.dumps({"ndcg@100": 0.3, "thirds": {"head": {"users": 3}}}))
    return folder


def use(folder: Path) -> None:
    config = Config.model_validate_json(json.dumps({"run": {"folder": str(folder)}}))
    actions: list[Callable[[], object]] = [
        lambda: report(folder, None),
        lambda: stored_config(folder),
        lambda: RunFolder(config).check(),
        lambda: RunFolder(config).claim_data(Data()),
        lambda: RunFolder(config).check_checkpoint({"run": "x"}, "x"),
        lambda: RunFolder(config).check_owner("a"),
        lambda: RunFolder(config).claim(),
    ]
    for action in actions:
        survives(action, folder, folder=folder)


@few_and_many(40, 1200, data=st.data())
def _folders(run: Path, work: Path, data: st.DataObject) -> None:
    shutil.rmtree(work / "run", ignore_errors=True)
    folder = Path(shutil.copytree(run, work / "run"))
    name = data.draw(st.sampled_from([*JSON, *LINES]), "name")
    path = folder / name
    if name in LINES:
        lines = data.draw(hostile_json(LINES[name]), "lines")
        changed = "".join(json.dumps(line) + "\n" for line in (lines if isinstance(lines, list) else [lines])).encode()
    else:
        changed = json.dumps(data.draw(hostile_json(json.loads(path.read_text())), "tree")).encode()
    path.write_bytes(data.draw(st.one_of(st.just(changed), damaged(path.read_bytes()), st.just(b"[" * 50_000))))
    use(folder)


def to_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def tables(good: pa.Table) -> st.SearchStrategy[bytes]:
    return st.one_of(hostile_table(good).map(to_parquet), damaged(to_parquet(good)), bomb(to_parquet(good)))


USERS = pa.table({"user": pa.array(range(9)), **{name: pa.array(np.arange(9) / 9) for name in METRICS}})


@few_and_many(60, 600, content=tables(USERS))
def _metrics(work: Path, content: bytes) -> None:
    (work / "a.parquet").write_bytes(content)
    (work / "b.parquet").write_bytes(to_parquet(USERS))
    survives(lambda: compare([work / "a.parquet"], [work / "b.parquet"], METRICS[0], resamples=9), work / "a.parquet")


HISTORIES = pa.table({"user": pa.array(["a", "b", "c"]), "items": pa.array([[1, 2], [], [3, 9]])})


@pytest.fixture(scope="module")
def export(work: Path) -> Path:
    block = RowBlock(np.arange(6), np.arange(5), np.ones(5, np.float32), np.ones(5, np.float32))
    write_export(work / "export", [block], item_ids=pa.array(range(5)), dims=8, row_norm="free")
    return work / "export"


@few_and_many(60, 900, content=tables(HISTORIES))
def _histories(export: Path, work: Path, content: bytes) -> None:
    (work / "h.parquet").write_bytes(content)
    output = work / "answers.parquet"
    output.unlink(missing_ok=True)
    said = survives(lambda: recommend_file(export, work / "h.parquet", output, 2), work / "h.parquet", folder=work)
    assert output.exists() == (said is None)


RATINGS = "".join(f"{user}\t{user % 7}\t3\t88\n" for user in range(40)).encode()


def archived() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../outside", b"x")
        archive.writestr(catalog.TABLES[catalog.NAME].members[0], RATINGS)
    return sink.getvalue()


@few_and_many(60, 900, content=st.sampled_from([RATINGS, archived()]).flatmap(damaged))
def _downloads(work: Path, content: bytes) -> None:
    assert survives(lambda: catalog.check(content, "the mirror"), "the mirror", folder=work) is not None
    assert not (work.parent / "outside").exists() and not (work.parents[1] / "outside").exists()


test_folders, test_many_folders = _folders
test_metrics, test_many_metrics = _metrics
test_histories, test_many_histories = _histories
test_downloads, test_many_downloads = _downloads


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, endless, Path.mkdir])
def test_no_file_is_read_without_end(tmp_path: Path, export: Path, make: Callable[[Path], None]) -> None:
    """A pipe that nobody writes to, and a link to a device."""
    for number, (name, action) in enumerate(
        {
            "manifest.json": load_export,
            "items.parquet": load_export,
            "items.npz": load_export,
            "config.json": stored_config,
            "a.json": lambda folder: read_json(folder / "a.json", "file"),
        }.items()
    ):
        folder = Path(shutil.copytree(export, tmp_path / str(number)))
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        assert survives(lambda action=action, folder=folder: action(folder), folder) is not None
    for kind in (Prepared, StartFolder, open_place):
        folder = tmp_path / kind.__name__
        folder.mkdir()
        make(folder / "manifest.json")
        assert survives(lambda kind=kind, folder=folder: kind(folder), folder) is not None
