"""Files of prepared histories that vanish, are cut off or change: found by name, and what is left stays in order."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hse_dist.data.checked import CheckedFiles
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.errors import DataError
from hse_dist.testing.faults import spoiled
from hse_dist.testing.runs import metrics_of, small_config
from hse_dist.train.driver import train

FAULTS = {
    "vanishes": "cannot be read",
    "truncated": "cannot be read|not what was prepared",
    "changed": "of the prepared",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared histories of some 400 users over 150 items."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare(small_config(folder.parent / "run", folder))
    return folder


def read_all(files: CheckedFiles, prepared: Prepared) -> list[Any]:
    return [files.read(*group) for group in prepared.row_groups("train")]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_named_or_its_users_have_no_history(data, fault):
    prepared = Prepared(data)
    path, group, users = prepared.row_groups("train")[2]
    strict, lenient = (CheckedFiles(prepared, policy) for policy in ("stop", "skip"))
    whole = [block.rows for block in read_all(strict, prepared)]
    with spoiled(data / path, fault):
        with pytest.raises(DataError, match=rf"{path}.*{FAULTS[fault]}"):
            strict.read(path, group, users)  # though the file was open, and what is open can still be read
        blocks = read_all(lenient, prepared)
    groups = prepared.row_groups("train")
    assert [len(block) for block in blocks] == [users for _, _, users in groups]
    bad = [one == path for one, _, _ in groups]
    assert any(bad) and not all(bad)
    for block, rows, out in zip(blocks, whole, bad, strict=True):
        assert np.array_equal(block.rows, rows[:0] if out else rows)
    assert list(lenient.bad) == [path]
    strict.read(path, group, users)  # it is as it was


def test_a_file_that_was_only_touched_is_good(data):
    prepared = Prepared(data)
    files = CheckedFiles(prepared, "stop")
    first = prepared.row_groups("train")[0]
    files.read(*first)
    (data / first[0]).touch()
    assert len(files.read(*first).rows)


def test_a_run_without_a_file_lists_it_once_and_has_as_many_steps(tmp_path, data):
    shutil.copytree(data, tmp_path / "data")
    whole = train(small_config(tmp_path / "whole", data, train__epochs=1))
    config = small_config(tmp_path / "run", tmp_path / "data", train__epochs=1, data__on_bad_file="skip")
    path = Prepared(data).row_groups("train")[0][0]
    (tmp_path / "data" / path).unlink()
    summary = train(config)
    assert summary["bad_files"] == [path] and summary["steps"] == whole["steps"]
    (line,) = (line for line in metrics_of(config) if line["kind"] == "bad_file")
    assert line["path"] == path and line["what"]
    again = train(config)
    assert again["bad_files"] == [path]
    assert sum(line["kind"] == "bad_file" for line in metrics_of(config)) == 1
