from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hse_dist.config import Config, DataSettings
from hse_dist.data import shuffle
from hse_dist.data.hashing import BUCKET_SEED, SPLIT_SALT, TARGET_SALT, bucket_of, hash_ids, mix
from hse_dist.data.histories import targets
from hse_dist.data.made_with import is_prepared, open_prepared
from hse_dist.data.prepare import prepare
from hse_dist.data.schema import plan
from hse_dist.data.source import find_files
from hse_dist.errors import DataError

Triples = list[tuple[Any, Any, int]]
SPLITS = ("train", "valid", "test")


def hash_one(value: Any, seed: int) -> int:
    return int(hash_ids(pa.array([value]), seed)[0])


def slow_prepare(log: Triples, data: DataSettings) -> tuple[list[tuple[Any, int]], dict[str, dict[int, list[Any]]]]:
    """([(item, count)] in row order, split → bucket → [(user, rows, target)]) with Python's own containers."""
    first: dict[tuple[Any, Any], int] = {}
    for user, item, time in log:
        first[user, item] = min(time, first.get((user, item), time))
    users_of = Counter(item for _, item in first)
    history: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
    for (user, item), time in first.items():
        if users_of[item] >= data.min_item_count:
            history[user].append((time, item))
    split: dict[Any, str] = {}
    for user, entries in history.items():
        draw = (hash_one(user, data.split.seed + SPLIT_SALT) >> 11) / 2**53
        name = "test" if draw < data.split.test else "valid" if draw < data.split.test + data.split.valid else "train"
        if len(entries) >= max(data.min_user_count, 1 if name == "train" else 2):
            split[user] = name
    counts = Counter({item: 0 for user in split for _, item in history[user]})
    counts.update(item for user, name in split.items() if name == "train" for _, item in history[user])
    vocabulary = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    row = {item: index for index, (item, _) in enumerate(vocabulary)}
    found: dict[str, dict[int, list[Any]]] = {name: defaultdict(list) for name in SPLITS}
    for user in sorted(split, key=lambda user: (hash_one(user, BUCKET_SEED), user)):
        timed = data.columns.timestamp is not None
        items = [item for _, item in sorted(history[user], key=lambda entry: entry if timed else row[entry[1]])]
        target: set[Any] = set()
        if split[user] != "train":
            size = min(max(int(len(items) * data.split.target + 0.5), 1), len(items) - 1)
            target = set(slow_order(user, items, data)[:size])
        bucket = int(bucket_of(hash_ids(pa.array([user]), BUCKET_SEED), data.buckets)[0])
        rows = [row[item] for item in items if item not in target]
        found[split[user]][bucket].append((user, rows, [row[item] for item in items if item in target]))
    return vocabulary, found


def slow_order(user: Any, items: list[Any], data: DataSettings) -> list[Any]:
    """The items that are targets first."""
    if data.split.target_order == "last":
        return items[::-1]
    seed = data.split.seed + TARGET_SALT
    inner = {item: mix(np.array([hash_one(item, seed)], np.uint64))[0] for item in items}
    outer = {item: int(mix(np.array([hash_one(user, seed)], np.uint64) ^ inner[item])[0]) for item in items}
    return sorted(items, key=lambda item: outer[item])


def read_prepared(folder: Path) -> tuple[list[tuple[Any, int]], dict[str, dict[int, list[Any]]]]:
    table = pq.read_table(folder / "vocabulary.parquet").to_pydict()
    assert table["row"] == list(range(len(table["row"])))
    found: dict[str, dict[int, list[Any]]] = {name: {} for name in SPLITS}
    for path in sorted((folder / "histories").glob("*/*/*.parquet")):
        split, bucket = path.parts[-3].partition("=")[2], int(path.parts[-2].partition("=")[2])
        rows = pq.ParquetFile(path).read().to_pydict()
        empty = [[] for _ in rows["user"]]
        found[split][bucket] = list(zip(rows["user"], rows["rows"], rows.get("target", empty), strict=True))
    return list(zip(table["item"], table["count"], strict=True)), found


@given(
    log=st.lists(st.tuples(st.integers(-3, 25), st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=200),
    strings=st.booleans(),
    timed=st.booleans(),
    last=st.booleans(),
    min_user=st.integers(1, 3),
    min_item=st.integers(1, 3),
    buckets=st.integers(1, 4),
    target=st.sampled_from([0.2, 0.5]),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_like_the_slow_reference(
    tmp_path_factory: pytest.TempPathFactory,
    make_config: Callable[..., Config],
    log: Triples,
    strings: bool,
    timed: bool,
    last: bool,
    min_user: int,
    min_item: int,
    buckets: int,
    target: float,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("slow")
    if strings:
        log = [(f"user {user}", f"é{item}", time) for user, item, time in log]
    user, item, time = map(list, zip(*log, strict=True))
    pq.write_table(pa.table({"user_id": user, "item_id": item, "t": time}), folder / "log.parquet")
    split = {
        "valid": 0.2,
        "test": 0.2,
        "target": target,
        "seed": seed,
        "target_order": "last" if last and timed else "random",
    }
    config = make_config(
        folder / "data",
        folder / "log.parquet",
        columns={"timestamp": "t"} if timed else {},
        min_user_count=min_user,
        min_item_count=min_item,
        buckets=buckets,
        users_per_row_group=3,
        split=split,
    )
    vocabulary, histories = slow_prepare(log, config.data)
    users = {name: sum(map(len, histories[name].values())) for name in SPLITS}
    if not users["train"] or sum(users.values()) < 2:
        with pytest.raises(DataError):
            prepare(config)
        assert sorted(path.name for path in folder.iterdir()) == ["log.parquet"]
        return
    summary = prepare(config)
    assert read_prepared(folder / "data") == (vocabulary, histories)
    assert (summary["users"], summary["items"]) == (users, len(vocabulary))
    entries = sum(len(rows) + len(held) for found in histories.values() for h in found.values() for _, rows, held in h)
    assert summary["interactions"] == entries and summary["read"] == len(log)


@pytest.mark.parametrize("strings", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_same_bytes_whatever_the_tasks_memory_and_order_of_files(
    tmp_path: Path,
    make_config: Any,
    write_log: Any,
    random_log: Any,
    digest: Any,
    monkeypatch: pytest.MonkeyPatch,
    strings: bool,
) -> None:
    log = random_log(300, 60, 3000)
    if strings:
        log.update({name: [f"{name} é{value}" for value in log[name]] for name in ("user_id", "item_id")})
    columns = {"timestamp": "timestamp"}
    write_log(tmp_path / "whole" / "log.parquet", log)
    for piece in range(3):
        part = {name: values[piece::3] for name, values in log.items()}
        write_log(tmp_path / "pieces" / f"{9 - piece}.parquet", part)
    whole = make_config(tmp_path / "one", tmp_path / "whole", columns=columns, buckets=4, users_per_row_group=16)
    prepare(whole)
    expected = digest(tmp_path / "one")
    assert len(expected) == 1 + 1 + 3 * 4
    prepare(whole)
    assert digest(tmp_path / "one") == expected
    # so little that buckets are worked on in parts, fragments spill more than once, and the catalogue comes in blocks
    monkeypatch.setattr(shuffle, "ROW_BYTES", {True: 10_000, False: 10_000})
    monkeypatch.setattr(shuffle, "TAKE_ROWS", 90)
    monkeypatch.setattr("hse_dist.data.reader.BATCH_ROWS", 100)
    monkeypatch.setattr("hse_dist.data.schema.FRAGMENT_BYTES", 1000)
    monkeypatch.setattr("hse_dist.data.grouping.COUNTED", 50)
    monkeypatch.setattr("hse_dist.data.vocabulary.BLOCK_IDS", 7)
    monkeypatch.setattr("hse_dist.data.vocabulary.MAPPED_ROWS", 9)
    settings = {"columns": columns, "buckets": 4, "users_per_row_group": 16, "tasks": 3}
    for memory in (2, 64):
        prepare(make_config(tmp_path / "two", tmp_path / "pieces", memory_mb=memory, **settings))
        other = digest(tmp_path / "two")
        shutil.rmtree(tmp_path / "two")
        assert {name: other[name] for name in other if name != "manifest.json"} == {
            name: expected[name] for name in expected if name != "manifest.json"
        }


def test_parts_and_spills_follow_the_memory(
    tmp_path: Path, make_config: Any, write_log: Any, random_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hse_dist.data.reader.BATCH_ROWS", 1000)
    write_log(tmp_path / "log.parquet", random_log(2000, 100, 30_000))
    data = make_config(tmp_path / "x", tmp_path / "log.parquet", memory_mb=1, buckets=2).data
    schema, fragments = plan(find_files(data.source), data)
    assert shuffle.count_parts(fragments, schema, data) == 2 * -(-30_000 * 288 // (2 << 18))
    (tmp_path / "spills").mkdir()
    files, rows = [], 0
    for index, fragment in enumerate(fragments):
        task = shuffle.SpillTask(index, fragment, schema, data, 6, str(tmp_path / "spills"))
        shares: list[float] = []
        spilt = shuffle.spill(task, lambda share, _, shares=shares: shares.append(share))
        files, rows = files + spilt.files, rows + spilt.rows
        assert shares == sorted(shares) and shares[-1] == 1.0
    assert rows.sum() == 30_000 and len(files) > len(fragments)
    held = [shuffle.Spills(files, part, schema).read("user").to_numpy() for part in range(6)]
    assert [len(users) for users in held] == rows.tolist()
    for part, users in enumerate(held):
        assert (bucket_of(hash_ids(pa.array(users), BUCKET_SEED), 6) == part).all()


def test_long_ids_need_more_parts(tmp_path: Path, make_config: Any, write_log: Any) -> None:
    def needed(user: Any) -> int:
        write_log(tmp_path / "log.parquet", {"user_id": [user] * 20, "item_id": ["x"] * 20})
        data = make_config(tmp_path / "x", tmp_path / "log.parquet").data
        schema, fragments = plan(find_files(data.source), data)
        return shuffle.row_bytes(fragments, schema, data)

    text, factor = shuffle.ROW_BYTES[False], shuffle.TEXT_FACTOR
    # with Arrow's offsets, of which a batch of n strings has n + 1
    assert text + factor * 8 <= needed("y") <= text + factor * 11
    assert text + factor * 208 <= needed("y" * 200) <= text + factor * 211


def test_row_groups_have_exactly_the_users_asked_for(prepared: Any) -> None:
    for split in SPLITS:
        for file in prepared.manifest["files"][split]:
            metadata = pq.ParquetFile(prepared.folder / file["path"]).metadata
            groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
            assert groups == file["row_groups"] and sum(groups) == file["users"]
            assert all(size == 32 for size in groups[:-1])


@pytest.mark.parametrize("order", ["random", "last"])
def test_targets_are_a_fifth_and_both_sides_have_items(order: str) -> None:
    lengths = np.arange(2, 60)
    hashes = np.random.default_rng(0).integers(0, 2**63, lengths.sum()).astype(np.uint64)
    chosen = targets(lengths, None if order == "last" else hashes, 0.2)
    for mask in np.split(chosen, np.cumsum(lengths)[:-1]):
        assert 1 <= mask.sum() < len(mask) and abs(mask.sum() - 0.2 * len(mask)) <= 0.8
        if order == "last":
            assert mask[-mask.sum() :].all()


def test_a_folder_of_other_settings_or_other_files_is_refused(
    tmp_path: Path, make_config: Any, write_log: Any, random_log: Any
) -> None:
    source = write_log(tmp_path / "log.parquet", random_log(50, 20, 500))
    config = make_config(tmp_path / "data", source)
    assert not is_prepared(config)
    prepare(config)
    assert is_prepared(config) and is_prepared(make_config(tmp_path / "data", source, tasks=7, memory_mb=5))
    assert open_prepared(config).users("train") > 0
    with pytest.raises(DataError, match=r"no prepared histories in .*none\. Prepare them first.*data\.folder"):
        open_prepared(make_config(tmp_path / "none", source))
    for action in (is_prepared, prepare, open_prepared):
        with pytest.raises(DataError, match=r"made with other settings: data\.min_user_count = 1 \(now 2\)"):
            action(make_config(tmp_path / "data", source, min_user_count=2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="exists and is not a prepared folder"):
        prepare(make_config(tmp_path / "mine", source))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("rows", "data", "message"),
    [
        ({"user_id": [], "item_id": []}, {}, "The log is empty"),
        ({"user_id": [1, 1], "item_id": [1, 2]}, {}, "No users are left to train on and to test: "),
        ({"user_id": [1, 2], "item_id": [1, 2]}, {"min_item_count": 2}, "None of the 2 items has enough users"),
        ({"user_id": [1, 2], "item_id": [1, 2]}, {"min_user_count": 5}, r"No users are left.*data\.min_user_count = 5"),
        (
            {"user_id": [1, 2], "item_id": [1, 2], "r": [1.0, None]},
            {"min_rating": 3.0, "columns": {"rating": "r"}},
            r"no interactions.*data\.min_rating = 3\.0",
        ),
        ({"user_id": [1, None], "item_id": [1, 2]}, {}, "null ids"),
        ({"user_id": [1, 2], "thing": [1, 2]}, {}, "has no column item_id. It has user_id, thing"),
    ],
)
def test_a_bad_log_leaves_nothing_behind(tmp_path: Path, make_config: Any, rows: Any, data: Any, message: str) -> None:
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=message):
        prepare(make_config(tmp_path / "data", tmp_path / "log.parquet", **data))
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, make_config: Any, write_log: Any, random_log: Any
) -> None:
    source = write_log(tmp_path / "log.csv", random_log(9, 9, 50))
    with pytest.raises(DataError, match=r"cannot be written.*data\.folder"):
        prepare(make_config(source / "below a file" / "data", source))


@pytest.mark.ray
def test_ray_tasks_write_the_same_bytes_and_raise_the_same_errors(
    tmp_path: Path, make_config: Any, write_log: Any, random_log: Any, digest: Any
) -> None:
    import ray

    for piece in range(3):
        write_log(tmp_path / "logs" / f"{piece}.csv", random_log(100, 40, 600, seed=piece))
    (tmp_path / "bad.csv").write_text("user_id,item_id\n1,2\n,3\n")
    options = {"columns": {"timestamp": "timestamp"}, "buckets": 3, "min_item_count": 30}
    prepare(make_config(tmp_path / "local", tmp_path / "logs", **options))
    started = not ray.is_initialized()
    if started:
        ray.init("local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
    try:
        prepare(make_config(tmp_path / "ray", tmp_path / "logs", **options, admission_mb=2.0**-12))
        with pytest.raises(DataError, match="null ids"):
            prepare(make_config(tmp_path / "bad", tmp_path / "bad.csv"))
    finally:
        if started:
            ray.shutdown()
    assert digest(tmp_path / "ray") == digest(tmp_path / "local")
    assert not (tmp_path / "bad").exists()
