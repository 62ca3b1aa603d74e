from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import HistoryBlock, Prepared
from hse_dist.errors import DataError


def histories(prepared: Prepared, split: str, column: str) -> list[list[int]]:
    tables = [pq.ParquetFile(prepared.folder / f["path"]).read() for f in prepared.manifest["files"][split]]
    return [row for table in tables for row in table.column(column).to_pylist()]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("batch_users", [5, 8192])
def test_scan_gives_every_history_in_file_order(prepared: Prepared, split: str, batch_users: int) -> None:
    columns = ("rows",) if split == "train" else ("rows", "target")
    rows, target, sizes = [], [], []
    for block in prepared.scan(split, columns, batch_users):
        assert block.rows.dtype == block.offsets.dtype == np.int64
        sizes.append(len(block))
        rows += [part.tolist() for part in np.split(block.rows, block.offsets[1:-1])]
        held = block.targets()
        target += [part.tolist() for part in np.split(held.rows, held.offsets[1:-1])]
    assert rows == histories(prepared, split, "rows") and len(rows) == prepared.users(split) > 0
    # blocks are full although users lie in three files
    whole, rest = divmod(len(rows), batch_users)
    assert sizes == [batch_users] * whole + [rest] * (rest > 0)
    if split != "train":
        assert target == histories(prepared, split, "target")


def test_matrices_hold_the_histories(prepared: Prepared) -> None:
    matrix, targets = prepared.matrix("test"), prepared.targets("test")
    assert matrix.shape == targets.shape == (prepared.users("test"), prepared.items) and matrix.dtype == np.float32
    for user, (rows, target) in enumerate(
        zip(histories(prepared, "test", "rows"), histories(prepared, "test", "target"), strict=True)
    ):
        assert matrix[user].indices.tolist() == sorted(rows) and targets[user].indices.tolist() == sorted(target)
    assert matrix.multiply(targets).nnz == 0
    counts = np.asarray(prepared.matrix("train").sum(axis=0)).ravel()
    assert (counts == prepared.counts()).all() and (np.diff(prepared.counts()) <= 0).all()
    assert len(prepared.item_ids()) == prepared.items


def test_the_fingerprint_is_that_of_the_content(
    tmp_path: Path, make_config: Any, write_log: Any, random_log: Any
) -> None:
    source, log = tmp_path / "log.parquet", random_log(60, 20, 600)

    def fingerprint(folder: str) -> str:
        write_log(source, log)
        prepare(make_config(tmp_path / folder, source))
        return Prepared(tmp_path / folder).fingerprint

    first = fingerprint("one")
    assert fingerprint("two") == first and len(first) == 64
    # two users change places: every number of the manifest and all counts of items stay
    log["user_id"] = [{3: 4, 4: 3}.get(user, user) for user in log["user_id"]]
    assert fingerprint("three") != first
    manifests = [Prepared(tmp_path / folder).manifest for folder in ("one", "three")]
    assert {**manifests[0], "files": 0} == {**manifests[1], "files": 0}


def test_it_pickles_as_its_path(prepared: Prepared) -> None:
    copy = pickle.loads(pickle.dumps(prepared))
    assert copy.folder == prepared.folder and copy.items == prepared.items


def test_blocks_are_cut_and_joined() -> None:
    block = HistoryBlock(np.array([0, 2, 2, 5]), np.arange(5))
    assert block.take(np.array([2, 0])).rows.tolist() == [2, 3, 4, 0, 1]
    part = block.slice(1, 3)
    assert part.offsets.tolist() == [0, 0, 3] and part.rows.tolist() == [2, 3, 4]
    joined = HistoryBlock.concatenate([part, block])
    assert joined.offsets.tolist() == [0, 0, 3, 5, 5, 8] and joined.rows.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
    assert len(HistoryBlock.concatenate([])) == 0


def test_a_damaged_folder_is_named(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest of the prepared folder at"):
        Prepared(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(prepared.folder, folder)
    path = folder / prepared.manifest["files"]["train"][0]["path"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"bucket=000/part\.parquet of the prepared folder cannot be read"):
        list(Prepared(folder).scan("train"))
    path.unlink()
    with pytest.raises(DataError, match="Prepare it again"):
        list(Prepared(folder).scan("train"))
    with pytest.raises(DataError, match="no split 'dev'"):
        Prepared(folder).users("dev")
    (folder / "manifest.json").write_text(json.dumps({"items": 3}))
    with pytest.raises(DataError, match="is not the manifest"):
        Prepared(folder)
