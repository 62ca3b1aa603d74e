"""With a sketch before the counting, everything that is prepared is the same to the byte."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hse_dist.data import sketch as module
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.data.sketch import DEPTH, Admitted, Sketch, merge
from hse_dist.errors import ConfigError, DataError

LEAST = 4
KIB = 2.0**-10
"""In MiB."""


def long_tailed(random_log: Any, seed: int, *, text: bool = False) -> dict[str, list[Any]]:
    """Some frequent items, and many rare ones, of which a third are others with every seed."""
    rows: dict[str, list[Any]] = random_log(80, 40, 700, seed=seed)
    rare = 100 * seed - np.random.default_rng(seed).integers(1000, 1300, len(rows["item_id"]))
    rows["item_id"] = np.where(np.arange(len(rare)) % 2, rows["item_id"], rare).tolist()
    if text:
        rows |= {key: [f"{key} é{value}" for value in rows[key]] for key in ("user_id", "item_id")}
    return rows


def passed(folder: Path, ids: pa.Array, pieces: int, size: int, least: int) -> np.ndarray:
    """The mask of ids that are counted in so many sketches."""
    paths = []
    for piece in range(pieces):
        sketch = Sketch(size, least)
        for first in range(0, len(ids), 1000):
            sketch.add(ids[first + piece : first + 1000 : pieces])
        paths.append(str(folder / f"{piece}.npy"))
        sketch.save(paths[-1])
    merge(paths, least, folder / "admitted.npy")
    return Admitted(folder / "admitted.npy").mask(ids)


@pytest.mark.parametrize(("text", "least"), [(False, 3), (True, 300)])
def test_no_id_is_missed_and_few_too_many_are_let_through(tmp_path, monkeypatch, text, least):
    monkeypatch.setattr(module, "MERGED", 1024)
    rng = np.random.default_rng(least)
    numbers = np.concatenate([rng.zipf(1.3, 4000) % 3000 - 7, rng.integers(10**6, 10**7, 2000)])
    rng.shuffle(numbers)
    ids = pa.array(list(map(str, numbers)), pa.large_string()) if text else pa.array(numbers)
    counts = Counter(numbers.tolist())
    true = np.array([counts[number] for number in numbers])
    for width in (8, 304, 16_000):
        size = DEPTH * width * (1 if least < 256 else 2)
        found = passed(tmp_path, ids, 1, size, least)
        assert found[true >= least].all()
        assert found.all() if width == 8 else not found.all()
        # who counted what does not matter, though counters stop at the minimum
        assert np.array_equal(passed(tmp_path, ids, 3, size, least), found)
        # the bound of the paper: more than e / width · N too large with a probability of at most e^-DEPTH
        far = {number for number, count in counts.items() if count < least - np.e / width * len(ids)}
        assert len(far & set(numbers[found].tolist())) <= np.exp(-DEPTH) * len(far)
    assert len(far) > 1000


@pytest.mark.parametrize(
    ("size", "text"),
    [(KIB / 32, False), (KIB / 2, True), (KIB / 2, False), (KIB, True), (64 * KIB, False), (64 * KIB, True)],
)
def test_the_prepared_folder_is_the_same_to_the_byte(
    tmp_path, make_config, write_log, random_log, digest, monkeypatch, text, size
):
    monkeypatch.setattr("hse_dist.data.reader.BATCH_ROWS", 100)
    logs = {ending: long_tailed(random_log, seed, text=text) for seed, ending in enumerate(("csv", "parquet", "jsonl"))}
    for ending, rows in logs.items():
        write_log(tmp_path / "log" / f"{ending}.{ending}", rows)
    settings = {
        "columns": {"rating": "rating", "timestamp": "timestamp"},
        "min_rating": 2.0,
        "min_item_count": LEAST,
        "buckets": 2,
        "users_per_row_group": 16,
    }
    plain = prepare(make_config(tmp_path / "plain", tmp_path / "log", **settings))
    config = make_config(tmp_path / "sketch", tmp_path / "log", **settings, admission_mb=size)
    result = prepare(config)
    assert digest(tmp_path / "sketch") == digest(tmp_path / "plain")
    assert result["read"] == plain["read"] and plain["counted_items"] > 400
    counts = Counter(
        item
        for rows in logs.values()
        for item, rating in zip(rows["item_id"], rows["rating"], strict=True)
        if rating >= 2.0
    )
    if size == KIB / 32:  # 8 counters a row: all of them are full
        assert result["counted_items"] == plain["counted_items"]
    elif size < 64 * KIB:
        assert result["items"] < result["counted_items"] < plain["counted_items"]
    else:
        assert result["items"] < result["counted_items"] == sum(count >= LEAST for count in counts.values())
    assert not (tmp_path / "sketch" / "work").exists()


@pytest.mark.parametrize("text", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_rare_item_comes_in_when_a_later_file_makes_it_frequent(
    tmp_path, make_config, write_log, random_log, digest, text
):
    settings = {"columns": {"timestamp": "timestamp"}, "min_item_count": LEAST, "buckets": 2, "extendable": True}
    settings |= {"evict_after_days": 10 / 86_400, "min_user_count": 2}
    results, seen = [], []
    for day in range(3):
        rows = long_tailed(random_log, day, text=text)
        seen.append(set(rows["item_id"]))
        rows["timestamp"] = [time + 25 * day for time in rows["timestamp"]]
        write_log(tmp_path / "log" / f"{day}.parquet", rows)
        for name, size in (("plain", None), ("sketch", KIB)):
            config = make_config(tmp_path / f"{name}-{day}", tmp_path / "log", **settings, admission_mb=size)
            results.append(prepare(config, extend=tmp_path / f"{name}-{day - 1}" if day else None))
        assert digest(tmp_path / f"sketch-{day}") == digest(tmp_path / f"plain-{day}")
        plain, ours = results[-2:]
        assert ours["counted_items"] < plain["counted_items"]
    before, after = results[-3], results[-1]
    assert after["items"] - before["items"] < after["new_items"]  # some are in the rows of others
    items = [set(Prepared(tmp_path / f"sketch-{day}").item_ids().to_pylist()) for day in range(3)]
    assert (items[2] - items[0]) & seen[0]


def test_items_that_the_path_gives_are_counted(tmp_path, make_config, write_log, random_log, digest):
    for item, rows in (("1", 30), ("2", 2), ("3", 30)):
        log = random_log(20, 1, rows, seed=int(item))
        del log["item_id"]
        write_log(tmp_path / "log" / f"item_id={item}" / f"part.{'csv' if item == '1' else 'parquet'}", log)
    results = [
        prepare(make_config(tmp_path / name, tmp_path / "log", min_item_count=LEAST, admission_mb=size))
        for name, size in (("plain", None), ("sketch", 64 * KIB))
    ]
    assert [result["counted_items"] for result in results] == [3, 2]
    assert digest(tmp_path / "plain") == digest(tmp_path / "sketch")


def test_nothing_that_may_be_frequent(tmp_path, make_config, write_log):
    write_log(tmp_path / "log.csv", {"user_id": ["a", "b"], "item_id": ["x", "y"]})
    for extendable in (False, True):
        with pytest.raises(DataError, match=r"No item has enough users.*data\.min_item_count = 2"):
            settings = {"min_item_count": 2, "admission_mb": 1, "extendable": extendable}
            prepare(make_config(tmp_path / "data", tmp_path / "log.csv", **settings))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"admission_mb": 1}, r"data\.admission_mb = 1 .*data\.min_item_count = 1"),
        ({"admission_mb": 40, "min_item_count": 2, "memory_mb": 64}, r"data\.admission_mb = 40 .*data\.memory_mb = 64"),
    ],
)
def test_a_sketch_without_use_or_room_is_refused(make_config, tmp_path, data, message):
    with pytest.raises(ConfigError, match=message):
        make_config(tmp_path / "data", "log", **data)
