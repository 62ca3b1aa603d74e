"""A prepared folder with features, opened: blocks and streams carry values, and what cannot be true is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hse_dist.config import StreamSettings
from hse_dist.data.checked import CheckedFiles
from hse_dist.data.feature_rows import FeatureRows
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import HistoryBlock, Prepared
from hse_dist.data.stream import HistoryStream
from hse_dist.errors import DataError
from tests.data.conftest import make_config
from tests.data.test_features import lists, settings_of, tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("features")
    tables(path)
    prepare(make_config(path / "data", path / "log.parquet", **settings_of(path, users_per_row_group=16)))
    return path / "data"


def test_a_stream_has_the_values_of_its_users(folder):
    prepared, names = Prepared(folder), ("own", "club")
    users = prepared.users("train")
    (whole,) = prepared.scan("train", features=names)
    places = {row: user for user, (row,) in enumerate(lists(*whole.features["own"]))}
    seen = []
    for rank in (0, 1):
        settings = StreamSettings(window=2, lanes=2)
        stream = HistoryStream(prepared, settings, batch_size=20, seed=0, rank=rank, ranks=2, features=names)
        for block, _ in stream.read(1, lambda block, _: block):
            assert set(block.features) == set(names)
            of_users = np.array([places[row] for row in block.features["own"][1].tolist()], np.int64)
            expected = whole.take(of_users)
            assert len(block) == len(of_users) and np.array_equal(block.rows, expected.rows)
            assert lists(*block.features["club"]) == lists(*expected.features["club"])
            seen += of_users.tolist()
    assert sorted(seen) == list(range(users))


def test_blocks_carry_values(folder):
    (block,) = Prepared(folder).scan("valid", ("rows", "target"), features=("club",))
    clubs = lists(*block.features["club"])
    part, chosen = block.slice(2, 9), block.take(np.array([5, 0, 5]))
    assert lists(*part.features["club"]) == clubs[2:9]
    assert lists(*chosen.features["club"]) == [clubs[5], clubs[0], clubs[5]]
    empty = HistoryBlock(np.zeros(3, np.int64), np.zeros(0, np.int64))
    joined = HistoryBlock.concatenate([empty, part, chosen])
    assert lists(*joined.features["club"]) == [[], [], *clubs[2:9], clubs[5], clubs[0], clubs[5]]
    assert not block.targets().features and not HistoryBlock.concatenate([]).features


def test_what_is_no_feature_of_users_is_refused(folder):
    prepared = Prepared(folder)
    for what, message in (
        (lambda: next(prepared.scan("train", features=("age",))), "has no feature 'age'.*own, club, kind, stars"),
        (lambda: next(prepared.scan("train", features=("kind",))), "kind is of items"),
        (lambda: prepared.item_features("club"), "club is of users"),
        (lambda: CheckedFiles(prepared, "skip", ("kind",)), "kind is of items"),
    ):
        with pytest.raises(DataError, match=message):
            what()


def test_rows_that_no_value_has_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    change(tmp_path / "data", lambda features: features[1].update(rows=features[1]["rows"] - 1))
    prepared = Prepared(tmp_path / "data")
    with pytest.raises(DataError, match=r"has row \d of \d values"):
        list(prepared.scan("train", features=("club",)))
    with pytest.raises(DataError, match=r"vocabulary\.parquet of the prepared folder cannot be read"):
        prepared.feature_counts("club")
    path, group, users = prepared.row_groups("train")[0]
    with pytest.raises(DataError, match="values"):
        CheckedFiles(prepared, "stop", ("club",)).read(path, group, users)
    block = CheckedFiles(prepared, "skip", ("club",)).read(path, group, users)
    assert lists(*block.features["club"]) == [[]] * users


def test_users_that_cannot_be_rows_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    prepared = Prepared(tmp_path / "data")
    first, *_ = (tmp_path / "data" / path for path in prepared.checksums("train"))
    table = pq.read_table(first, partitioning=None)
    texts = table.column("user").cast(pa.string())
    for spoilt in (
        table.drop(["user"]),
        table.slice(1),
        table.append_column("user", texts),
        table.set_column(0, "user", texts),
    ):
        pq.write_table(spoilt, first)
        with pytest.raises(DataError, match="of the prepared folder cannot be read"):
            prepared.feature_values("own")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda features: features[0].update(rows=5),
        lambda features: features.append(features[1]),
        lambda features: features[1].update(name="../x"),
        lambda features: features[1].update(rows=2**40),
        lambda features: features[1].update(of="item"),
        lambda features: features[2].update(vocabulary=None),
        lambda features: features[2]["lists"].update(path="/etc/passwd"),
        lambda features: features[3].pop("of"),
    ],
)
def test_a_manifest_that_cannot_be_true_is_refused(folder, tmp_path, spoil):
    (tmp_path / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    Prepared(tmp_path)
    change(tmp_path, spoil)
    with pytest.raises(DataError, match="Prepare it again"):
        Prepared(tmp_path)


def test_more_values_than_a_file_holds_are_refused_before_anything_is_made_for_them(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    change(tmp_path / "data", lambda features: features[1].update(rows=2**30))
    with pytest.raises(DataError, match=r"club/vocabulary\.parquet has 1073741824 values"):
        Prepared(tmp_path / "data")


def test_a_table_of_a_feature_that_is_not_there_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    change(tmp_path / "data", lambda features: features.pop(1))
    with pytest.raises(DataError, match="has no feature 'club'"):
        FeatureRows.of(Prepared(tmp_path / "data"), ["own", "club"])
    assert FeatureRows.of(Prepared(tmp_path / "data"), ["own"]).users == ("own",)


def change(folder: Path, spoil: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    spoil(manifest["features"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
