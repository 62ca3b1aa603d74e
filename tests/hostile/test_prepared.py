"""A prepared folder, or a start's, that somebody has changed, checksums and all: what it holds, or a `DataError`.

What passes must be safe to compute with: rows of a catalogue in range, whatever the files say.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from hse_dist.config import Config, StreamSettings, parse_config
from hse_dist.data.made_with import is_prepared
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.data.stream import HistoryStream
from hse_dist.sparsity.start.folder import StartFolder, write_entries, write_rows
from hse_dist.testing.hostile import bomb, damaged, few_and_many, hostile_json, hostile_table, survives

SPLITS = ("train", "valid", "test")
FEATURES = {
    "own": {"of": "user"},
    "taken": {"of": "user", "column": "item_id"},
    "taker": {"of": "item", "column": "user_id"},
}
Change = Callable[[bytes], bytes]


def config_of(folder: Path) -> Config:
    synthetic = {"users": 60, "items": 20, "mean_history": 6}
    data = {"source": "synthetic", "synthetic": synthetic, "folder": str(folder), "buckets": 1, "features": FEATURES}
    return parse_config({"data": {**data, "users_per_row_group": 16}}, "of a test")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "data"
    prepare(config_of(folder))
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def copied(good: Path, work: Path) -> Path:
    shutil.rmtree(work / "data", ignore_errors=True)
    return Path(shutil.copytree(good, work / "data"))


def forge(folder: Path, file: Path, data: bytes) -> None:
    """Write a file, and vouch for it in the manifest."""
    file.write_bytes(data)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for one in [entry for files in manifest["files"].values() for entry in files]:
        if folder / one["path"] == file:
            one["sha256"] = hashlib.sha256(data).hexdigest()
    path.write_text(json.dumps(manifest))


def use(folder: Path) -> None:
    """All that jobs ask of a prepared folder."""
    is_prepared(config_of(folder))
    prepared = Prepared(folder)
    counts, ids = prepared.counts(), prepared.item_ids()
    assert len(counts) == len(ids) == prepared.items and counts.dtype == np.int64 and not ids.null_count
    assert len(prepared.fingerprint) == 64
    for split in SPLITS:
        assert prepared.users(split) >= 0
        prepared.matrix(split).check_format()
        if split != "train":
            prepared.targets(split).check_format()
    of_users = [feature.name for feature in prepared.features.values() if feature.of == "user"]
    stream = HistoryStream(prepared, StreamSettings(), batch_size=8, seed=0, rank=0, ranks=1, features=of_users)
    for block, _ in stream.read(1, lambda block, place: block):
        are_lists(block.offsets, block.rows, len(block), prepared.items)
        for name, lists in block.features.items():
            are_lists(*lists, len(block), prepared.features[name].rows)
    for feature in prepared.features.values():
        assert len(prepared.feature_counts(feature.name)) == len(prepared.feature_values(feature.name)) == feature.rows
        if feature.of == "item":
            are_lists(*prepared.item_features(feature.name), prepared.items, feature.rows)


def are_lists(offsets: np.ndarray, rows: np.ndarray, count: int, below: int) -> None:
    assert rows.min(initial=0) >= 0 and rows.max(initial=0) < below
    assert len(offsets) == count + 1 and (np.diff(offsets) >= 0).all() and offsets[-1] == len(rows)


def changed(data: st.DataObject, content: bytes) -> bytes:
    """A Parquet file's bytes after a change of its bytes, its columns or its footer."""
    kinds = [damaged(content), bomb(content)]
    kinds += [hostile_table(pq.read_table(io.BytesIO(content))).map(to_parquet)] * 3
    return data.draw(st.one_of(kinds))


def to_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=16)
    return sink.getvalue()


@few_and_many(60, 1500, data=st.data())
def _files(good: Path, work: Path, data: st.DataObject) -> None:
    folder = copied(good, work)
    file = data.draw(st.sampled_from(sorted(folder.rglob("*.parquet"))), "file")
    forge(folder, file, changed(data, file.read_bytes()))
    survives(lambda: use(folder), folder, file.relative_to(folder))


@few_and_many(60, 1500, data=st.data())
def _manifests(good: Path, work: Path, data: st.DataObject) -> None:
    folder = copied(good, work)
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    files = [{"files": tree["files"]}, {"items": tree["items"]}, {"features": tree["features"]}, tree]
    part = data.draw(st.sampled_from(files).flatmap(hostile_json), "tree")
    whole = {**tree, **part} if isinstance(part, dict) and part.keys() < tree.keys() else part
    content = data.draw(st.one_of(st.just(json.dumps(whole).encode()), damaged(path.read_bytes())))
    path.write_bytes(content)
    survives(lambda: use(folder), folder)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "data"
    live = np.array([2, 1, 0, 3])
    write_rows(folder, 0, live, np.ones(4, np.float32))
    write_entries(folder, 0, np.repeat(np.arange(4), live), np.array([0, 3, 2, 1, 2, 4]), np.arange(6.0))
    manifest = {"version": 1, "kind": "hse", "rows": 4, "dims": 5, "live_entries": 6, "settings": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def use_start(folder: Path) -> None:
    found = StartFolder(folder)
    offsets, columns, values = found.entries()
    live, gains = found.live(), found.gains()
    assert len(live) == len(gains) == found.rows == len(offsets) - 1 and len(columns) == len(values) == offsets[-1]
    assert columns.min(initial=0) >= 0 and columns.max(initial=0) < found.dims and (live >= 0).all()
    assert np.isfinite(values).all() and np.isfinite(gains).all()


@few_and_many(60, 1200, data=st.data())
def _starts(start: Path, work: Path, data: st.DataObject) -> None:
    folder = copied(start, work)
    file = data.draw(st.sampled_from([path for path in sorted(folder.rglob("*")) if path.is_file()]), "file")
    content: Any = file.read_bytes()
    if file.suffix == ".json":
        tree = hostile_json(json.loads(content)).map(lambda tree: json.dumps(tree).encode())
        content = data.draw(st.one_of(tree, tree, damaged(content)))
    else:
        content = changed(data, content)
    file.write_bytes(content)
    survives(lambda: use_start(folder), folder)


test_files, test_many_files = _files
test_manifests, test_many_manifests = _manifests
test_starts, test_many_starts = _starts
