"""Any bytes as a log, in every format that is read: batches of ids, or one `DataError`; and the same of `prepare`."""

from __future__ import annotations

import gzip
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

from hse_dist.config import Config, parse_config
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.data.reader import read
from hse_dist.data.schema import plan
from hse_dist.data.source import find_files
from hse_dist.testing.hostile import bomb, damaged, few_and_many, hostile_table, survives

ROWS = 60
TABLE = pa.table(
    {
        "user_id": pa.array(np.arange(ROWS) % 12),
        "item_id": pa.array([f"item {i % 7}" for i in range(ROWS)]),
        "rating": pa.array(np.arange(ROWS) % 5 + 0.5),
        "timestamp": pa.array(np.arange(ROWS) * 1000),
    }
)
COLUMNS = {"timestamp": "timestamp", "rating": "rating"}


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=25, **options)
    return sink.getvalue()


def lines(separator: str) -> bytes:
    rows = [TABLE.column_names, *(row.values() for row in TABLE.to_pylist())]
    return "".join(separator.join(map(str, row)) + "\n" for row in rows).encode()


LOGS = {
    "a.parquet": parquet(TABLE),
    "b.parquet": parquet(TABLE, compression="none", use_dictionary=False),
    "c.csv": lines(","),
    "d.tsv": lines("\t"),
    "e.jsonl": "".join(json.dumps(row) + "\n" for row in TABLE.to_pylist()).encode(),
    "f.csv.gz": gzip.compress(lines(","), mtime=0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


def settings(folder: Path, name: str) -> Config:
    data = {"source": str(folder / name), "folder": str(folder / "data"), "columns": COLUMNS, "min_rating": 1.0}
    return parse_config({"data": {**data, "buckets": 2}}, "of a test")


def read_all(folder: Path, name: str) -> Callable[[], None]:
    config = settings(folder, name).data

    def work() -> None:
        schema, fragments = plan(find_files(config.source), config)
        for fragment in fragments:
            for batch in read(fragment, schema, config.columns, config.min_rating):
                batch.validate(full=True)
                assert batch.schema == schema.arrow() and not batch.column("user").null_count

    return work


def prepare_all(folder: Path, name: str) -> Callable[[], None]:
    def work() -> None:
        prepare(settings(folder, name))
        prepared = Prepared(folder / "data")
        assert sum(prepared.users(split) for split in ("train", "valid", "test")) > 1
        for split in ("train", "valid", "test"):
            prepared.matrix(split).check_format()

    return work


def check(folder: Path, name: str, content: bytes, action: Callable[[Path, str], Callable[[], None]]) -> None:
    shutil.rmtree(folder / "data", ignore_errors=True)
    (folder / name).write_bytes(content)
    try:
        said = survives(action(folder, name), folder / name, "data.source", "data.min", "data.ids", folder=folder)
        assert said is None or not (folder / "data").exists(), "a part of a prepared folder is left"
    finally:
        (folder / name).unlink()


any_file = st.sampled_from(sorted(LOGS)).flatmap(lambda name: st.tuples(st.just(name), damaged(LOGS[name])))
any_table = hostile_table(TABLE).map(lambda table: ("t.parquet", parquet(table)))


any_bomb = st.sampled_from(["a.parquet", "b.parquet"]).flatmap(lambda name: st.tuples(st.just(name), bomb(LOGS[name])))
any_log = st.one_of(any_file, any_table, any_bomb)


@few_and_many(120, 2500, log=any_log)
def _logs(folder: Path, log: tuple[str, bytes]) -> None:
    check(folder, *log, read_all)


@few_and_many(12, 300, log=any_log)
def _prepare(folder: Path, log: tuple[str, bytes]) -> None:
    check(folder, *log, prepare_all)


test_logs, test_many_logs = _logs
test_prepare, test_many_prepare = _prepare
