"""Features beside interactions: what their tables say, as rows beside histories and items."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.errors import ConfigError, DataError
from tests.data.conftest import make_config, random_log, write_log

FEATURES = {
    "own": {"of": "user"},
    "club": {"of": "user", "column": "clubs", "separator": "|", "min_count": 3},
    "kind": {"of": "item", "column": "kinds", "key": "thing"},
    "stars": {"of": "user", "column": "rating"},
}


def lists(offsets: np.ndarray, rows: np.ndarray) -> list[list[int]]:
    assert offsets.dtype == rows.dtype == np.int64
    return [part.tolist() for part in np.split(rows, offsets[1:-1])]


def tables(folder: Path, text: bool = False) -> tuple[Any, Any, Any]:
    """A log, clubs of some users (a line or more each) and kinds of some items; each with ids that others lack."""
    rng = np.random.default_rng(3)
    log = random_log(150, 40, 1500)
    log["rating"] = [int(stars) for stars in log["rating"]]
    users = rng.integers(0, 200, 260).tolist()
    names = ["red", "blue", "é", "green", "", "rare"]
    clubs = ["|".join(rng.choice(names, rng.integers(1, 4), p=[0.4, 0.3, 0.1, 0.1, 0.09, 0.01])) for _ in users]
    things = rng.permutation(60)[:45].tolist()
    kinds = [None if thing % 7 == 0 else rng.integers(0, 6, thing % 4).tolist() for thing in things]
    if text:
        log["user_id"], users = ([f"ü{user}" for user in some] for some in (log["user_id"], users))
        log["item_id"], things = ([f"i{item}" for item in some] for some in (log["item_id"], things))
    write_log(folder / "log.parquet", log)
    write_log(folder / "users.csv", {"user_id": users, "clubs": clubs})
    pq.write_table(
        pa.table({"thing": things, "kinds": pa.array(kinds, pa.list_(pa.int16()))}), folder / "items.parquet"
    )
    return log, list(zip(users, clubs, strict=True)), list(zip(things, kinds, strict=True))


def settings_of(folder: Path, **data: Any) -> dict[str, Any]:
    sources = {"club": folder / "users.csv", "kind": folder / "items.parquet"}
    features = {
        name: {**feature, **({"source": str(sources[name])} if name in sources else {})}
        for name, feature in FEATURES.items()
    }
    return {"features": features, "columns": {"timestamp": "timestamp"}, "buckets": 2, **data}


def in_order(values: dict[Any, set[Any]], chosen: set[Any], least: int) -> list[tuple[Any, int]]:
    """(value, how many of the chosen have it), in the order of rows."""
    counts = Counter(value for one, own in values.items() if one in chosen for value in own)
    kept = [(value, count) for value, count in counts.items() if count >= least]
    return sorted(kept, key=lambda pair: (-pair[1], pair[0].encode() if isinstance(pair[0], str) else pair[0]))


def users_of(prepared: Prepared, split: str) -> list[Any]:
    files = [pq.ParquetFile(prepared.folder / path) for path in prepared.checksums(split)]
    return [user for file in files for user in file.read(["user"]).column("user").to_pylist()]


@pytest.mark.parametrize(("kind", "text"), [("users", False), ("within_users", True)])
def test_like_a_slow_reference(tmp_path, kind, text):
    log, clubs, kinds = tables(tmp_path, text)
    split = {"kind": kind, "valid": 0.2, "test": 0.2}
    prepare(make_config(tmp_path / "data", tmp_path / "log.parquet", **settings_of(tmp_path, split=split)))
    prepared = Prepared(tmp_path / "data")
    assert list(prepared.features) == list(FEATURES)
    values: dict[str, dict[Any, set[Any]]] = {name: defaultdict(set) for name in FEATURES}
    for user, names in clubs:
        values["club"][user] |= set(names.split("|")) - {""}
    for item, numbers in kinds:
        values["kind"][item] |= set(numbers or ())
    hidden = {split: histories(prepared, split, "target") for split in ("valid", "test")}
    for user, item, stars in zip(log["user_id"], log["item_id"], log["rating"], strict=True):
        if not any(item in targets.get(user, ()) for targets in hidden.values()):
            values["stars"][user].add(stars)
    items, training = prepared.item_ids().to_pylist(), users_of(prepared, "train")
    for name, least in (("club", 3), ("kind", 1), ("stars", 1)):
        chosen = set(items if name == "kind" else training)
        expected = in_order(values[name], chosen, least)
        found = zip(prepared.feature_values(name).to_pylist(), prepared.feature_counts(name).tolist(), strict=True)
        assert list(found) == expected and prepared.features[name].rows == len(expected) > 2
        row = {value: index for index, (value, _) in enumerate(expected)}
        rows = {one: sorted(row[value] for value in own if value in row) for one, own in values[name].items()}
        if name == "kind":
            assert lists(*prepared.item_features("kind")) == [rows.get(item, []) for item in items]
            continue
        for part in ("train", "valid", "test"):
            blocks = list(prepared.scan(part, (), 17, [name]))
            found = [row for block in blocks for row in lists(*block.features[name])]
            assert found == [rows.get(user, []) for user in users_of(prepared, part)]
        assert pq.read_schema(tmp_path / "data/features" / name / "vocabulary.parquet").names == [
            "row",
            "value",
            "count",
        ]
    assert prepared.feature_values("own").to_pylist() == training
    place = {user: [row] for row, user in enumerate(training)}
    for part in ("train", "valid", "test"):
        (block,) = prepared.scan(part, features=["own"])
        assert lists(*block.features["own"]) == [place.get(user, []) for user in users_of(prepared, part)]
        # a row of one's own is had by who trains
        assert all(map(len, lists(*block.features["own"]))) == (part == "train" or kind == "within_users")
    (block,) = prepared.scan("train")
    assert prepared.feature_counts("own").tolist() == np.diff(block.offsets).tolist()


def test_within_users_all_train_and_none_with_its_target(tmp_path):
    write_log(tmp_path / "log.parquet", random_log(150, 40, 1500))

    for columns in ({}, {"columns": {"timestamp": "timestamp"}}):
        found = {}
        for kind in ("users", "within_users"):
            shutil.rmtree(tmp_path / kind, ignore_errors=True)
            split = {"kind": kind, "valid": 0.2, "test": 0.2}
            config = make_config(tmp_path / kind, tmp_path / "log.parquet", buckets=2, split=split, **columns)
            found[kind] = (prepare(config), Prepared(tmp_path / kind))
        (before, apart), (after, within) = found["users"], found["within_users"]
        assert after["interactions"] == before["interactions"] and after["left_out"] == before["left_out"]
        assert after["users"] == {**before["users"], "train": sum(before["users"].values())}
        whole = {user: set(ids) for user, ids in histories(apart, "train", "rows").items()}
        for split in ("valid", "test"):
            inputs, targets = (histories(within, split, column) for column in ("rows", "target"))
            assert targets == histories(apart, split, "target") and inputs == histories(apart, split, "rows")
            whole |= {user: set(ids) for user, ids in inputs.items()}
        training = histories(within, "train", "rows")
        assert {user: set(ids) for user, ids in training.items()} == whole
        counts = Counter(item for ids in training.values() for item in ids)
        assert within.counts().tolist() == [counts[item] for item in within.item_ids().to_pylist()]
        by_split = within.manifest["interactions_by_split"]
        assert by_split["train"] == sum(counts.values()) and sum(by_split.values()) == after["interactions"]


def histories(prepared: Prepared, split: str, column: str) -> dict[Any, list[Any]]:
    """Item ids of each user, sorted."""
    items, found = prepared.item_ids().to_pylist(), {}
    for path in prepared.checksums(split):
        table = pq.ParquetFile(prepared.folder / path).read(["user", column]).to_pydict()
        found |= {user: sorted(items[row] for row in rows) for user, rows in zip(*table.values(), strict=True)}
    return found


@pytest.mark.parametrize(
    ("kind", "suffix", "data", "feature"),
    [
        ("users", "csv", {"ids": "string", "buckets": 2}, {}),
        ("within_users", "csv", {"min_item_count": 15}, {"separator": ";", "source": "log.csv"}),
        ("users", "jsonl", {"columns": {"timestamp": "timestamp", "rating": "rating"}, "min_rating": 3.0}, {}),
    ],
)
def test_a_line_of_the_log_gives_no_value_where_its_item_is_hidden(tmp_path, monkeypatch, kind, suffix, data, feature):
    """The item itself as the value, which is the most that a value could tell."""
    monkeypatch.chdir(tmp_path)
    log = random_log(60, 40, 600)
    write_log(tmp_path / f"log.{suffix}", log)
    split = {"kind": kind, "valid": 0.3, "test": 0.2, "target_order": "last" if "columns" in data else "random"}
    features = {"seen": {"of": "user", "column": "item_id", **feature}}
    prepare(make_config(tmp_path / "data", f"log.{suffix}", features=features, split=split, **{"buckets": 1, **data}))
    prepared, everything = Prepared(tmp_path / "data"), defaultdict(set)
    values = [str(value) for value in prepared.feature_values("seen").to_pylist()]
    for user, item in zip(log["user_id"], log["item_id"], strict=True):
        everything[str(user)].add(str(item))
    for part in ("train", "valid", "test"):
        # who trains as well keeps back there what is hidden elsewhere
        targets = {
            other: histories(prepared, other, "target") for other in ("valid", "test") if part in ("train", other)
        }
        hidden = {str(user): set(map(str, ids)) for own in targets.values() for user, ids in own.items()}
        (block,) = prepared.scan(part, features=["seen"])
        found = [{values[row] for row in rows} for rows in lists(*block.features["seen"])]
        users = [str(user) for user in users_of(prepared, part)]
        assert found == [(everything[user] - hidden.get(user, set())) & set(values) for user in users]
        assert part == "train" or all(hidden[user] for user in users)


def test_the_same_bytes_whatever_tasks_memory_and_order_of_files(tmp_path, digest, monkeypatch):
    _, clubs, _ = tables(tmp_path)
    data = settings_of(tmp_path, split={"kind": "within_users"}, users_per_row_group=16)
    prepare(make_config(tmp_path / "one", tmp_path / "log.parquet", **data))
    for name, value in {
        "shuffle.ROW_BYTES": {True: 10_000, False: 10_000},
        "shuffle.TAKE_ROWS": 90,
        "reader.BATCH_ROWS": 300,
        "schema.FRAGMENT_BYTES": 20_000,
        "vocabulary.BLOCK_IDS": 4,
        "feature_rounds.ITEMS_PER_ROW_GROUP": 11,
    }.items():
        monkeypatch.setattr(f"hse_dist.data.{name}", value)
    for piece in (0, 1):
        rows = {name: [line[index] for line in clubs[piece::2]] for index, name in enumerate(("user_id", "clubs"))}
        write_log(tmp_path / "pieces" / f"{9 - piece}.jsonl", rows)
    data["features"]["club"]["source"] = str(tmp_path / "pieces")
    prepare(make_config(tmp_path / "two", tmp_path / "log.parquet", **data, tasks=3, memory_mb=21))
    one, two = (
        {
            name: file
            for name, file in digest(tmp_path / folder).items()
            if not name.startswith(("manifest", "features/kind/items"))
        }
        for folder in ("one", "two")
    )
    assert one == two and sum(name.startswith("features/") for name in one) == 3
    first, second = (Prepared(tmp_path / folder) for folder in ("one", "two"))
    assert lists(*first.item_features("kind")) == lists(*second.item_features("kind"))
    path = tmp_path / "two" / "features" / "kind" / "items.parquet"
    assert pq.ParquetFile(path).num_row_groups == 4
    table = pq.read_table(path)
    pq.write_table(table.take(np.arange(table.num_rows)[::-1]), path)  # it could be one, and is another one
    with pytest.raises(DataError, match="checksum is not the one in the manifest"):
        second.item_features("kind")


def column(name: str, values: Any) -> pa.Table:
    return pa.table({"user_id": pa.array(range(len(values))), name: values})


@pytest.mark.parametrize(
    ("table", "feature", "message"),
    [
        (
            column("age", [1, 2]),
            {"column": "aeg"},
            r"no column aeg\. It has user_id, age.*data\.features\.x\.column = 'aeg'",
        ),
        (
            column("age", [1.5, 2]),
            {"column": "age"},
            r"age of .* is double; it must be .*\. Round it to .*some are missing.*data\.features\.x\.column = 'age'",
        ),
        (column("age", [1, 2]), {"column": "age", "key": "id"}, r"no column id\..*data\.features\.x\.key = 'id'"),
        (
            column("age", [1, 2]).rename_columns(["id", "age"]),
            {"column": "age"},
            r"no column user_id\. It has id, age\. Set it to the column with the ids\. .*data\.features\.x\.key = None",
        ),
        (column("age", [1, 2]), {"column": "user_id"}, r"its ids and its values in one column.*x\.column = 'user_id'"),
        (
            column("age", [1, 2])[:0],
            {"column": "age"},
            r"The table of the feature x is empty.*data\.features\.x\.source",
        ),
        (
            pa.table({"user_id": ["1", "2"], "age": [1, 2]}),
            {"column": "age"},
            r"user_id of the feature x is large_string, the user ids .* int64.*data\.ids = \"string\".*x\.key",
        ),
        (
            pa.table({"user_id": [1, None], "age": [1, 2]}),
            {"column": "age"},
            r"user_id .*null ids.*data\.features\.x\.key",
        ),
        (
            pa.table({"user_id": [1], "age": pa.array([2**63], pa.uint64())}),
            {"column": "age"},
            r"values that are not int64.*data\.features\.x\.column",
        ),
        (
            column("age", [None, None]).cast(pa.schema([("user_id", pa.int64()), ("age", pa.string())])),
            {"column": "age"},
            r"The feature x has no values: all are missing.*data\.features\.x\.column = 'age'",
        ),
        (
            column("age", list(range(20))),
            {"column": "age", "min_count": 9},
            r"no value that 9 users have\. The most frequent one has 1\..*data\.features\.x\.min_count = 9",
        ),
        (
            pa.table({"user_id": [78], "age": [1]}),
            {"column": "age"},
            r"values of none of the training users\. .*ids like 78, the log .* like \d+:.*features\.x\.key = 'user_id'",
        ),
        (
            pa.table({"item_id": [78], "age": [1]}),
            {"of": "item", "column": "age"},
            r"values of none of the items that are left\. .*ids like 78, the log has ids like 0:",
        ),
        (
            column("age", [1, 2]),
            {"source": "", "min_count": 2},
            r"x has a row a user.*data\.features\.x\.min_count = 2",
        ),
        (None, {"column": "age"}, r"no log at .*data\.features\.x\.source"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_its_setting(tmp_path, table, feature, message):
    source = write_log(tmp_path / "log.parquet", random_log(20, 10, 100))
    if table is not None:
        pq.write_table(table, tmp_path / "table.parquet")
    features = {"x": {"of": "user", "source": str(tmp_path / "table.parquet"), **feature}}
    with pytest.raises(DataError, match=message):
        prepare(make_config(tmp_path / "data", source, features=features, buckets=1))
    assert not (tmp_path / "data").exists()


def test_features_are_not_extended_yet_and_other_ones_need_another_folder(tmp_path):
    source = write_log(tmp_path / "log.parquet", random_log(30, 10, 200))
    features = {name: {"of": "user", "column": "timestamp"} for name in ("stars", "time")}
    config = make_config(tmp_path / "data", source, features=features, buckets=1)
    with pytest.raises(ConfigError, match=r"cannot be extended or followed yet.*data\.features = \['stars', 'time'\]"):
        prepare(config, extend=tmp_path)
    prepare(config)
    other = {"stars": {**features["stars"], "min_count": 2}, "own": {"of": "user"}}
    wanted = (
        r"settings: data\.features\.own was not set \(now it is\), data\.features\.stars\.min_count = 1 \(now 2\), "
        r"data\.features\.time was set \(now it is not\)\."
    )
    with pytest.raises(DataError, match=wanted):
        prepare(make_config(tmp_path / "data", source, features=other, buckets=1))


def test_prepare_says_who_has_values_and_warns_where_few_do_or_they_look_like_several(tmp_path, caplog):
    caplog.set_level("INFO", "hse_dist.data.feature_report")
    source = write_log(tmp_path / "log.parquet", random_log(40, 20, 400))
    few = {"of": "user", "source": write_log(tmp_path / "few.csv", {"user_id": range(2, 5), "age": [2, 2, 2]})}
    tags = {"item_id": [1, 2, 3], "tags": ["a|b", "b|c;d", "e"]}
    most = {"of": "item", "source": write_log(tmp_path / "items.csv", tags), "column": "tags"}
    features = {name: {**own, "source": str(own["source"])} for name, own in {"few": few, "tags": most}.items()}
    features |= {"own": {"of": "user"}, "few": {**features["few"], "column": "age"}}
    config = make_config(tmp_path / "data", source, features=features, buckets=2)
    result = prepare(config)
    with_one = sum(user in (2, 3, 4) for user in users_of(Prepared(tmp_path / "data"), "train"))
    users, share = result["users"]["train"], with_one / result["users"]["train"]
    assert result["features"] == {
        "few": {"of": "user", "values": 1, "share": round(share, 4)},
        "tags": {"of": "item", "values": 3, "share": round(3 / result["items"], 4)},
        "own": {"of": "user", "values": users, "share": 1.0},
    }
    assert list(result["features"]) == list(features)
    assert f"feature few: 1 values, {100 * share:.1f} % of the training users have one" in caplog.text
    few_users, several = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"][::-1]
    assert several.startswith("prepare: 2 of 3 values of the feature tags contain '|'")
    assert f"only {with_one} of {users} training users have a value of the feature few" in few_users


def test_ids_are_read_as_texts_on_both_sides(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id\n" + "".join(f"0{n % 9},{n % 5}\n" for n in range(40)))
    pq.write_table(pa.table({"user_id": ["01", "02", "2"], "age": [7, 8, 9]}), tmp_path / "users.parquet")
    (tmp_path / "items.csv").write_text("item_id,size\n1,2\n2,\n3,1\n4,1\n")
    features = {
        "age": {"of": "user", "source": str(tmp_path / "users.parquet"), "column": "age"},
        "size": {"of": "item", "source": str(tmp_path / "items.csv"), "column": "size"},
    }
    split = {"kind": "within_users"}
    config = make_config(
        tmp_path / "data", tmp_path / "log.csv", ids="string", features=features, split=split, buckets=1
    )
    prepare(config)
    prepared = Prepared(tmp_path / "data")
    assert prepared.feature_values("age").to_pylist() == [7, 8]  # a value is what it was
    assert prepared.feature_values("size").to_pylist() == [1, 2] and prepared.feature_counts("size").tolist() == [2, 1]
