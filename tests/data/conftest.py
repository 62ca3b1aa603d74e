"""Small logs in every format, and prepared folders made of them."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hse_dist.config import Config, parse_config
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared

Rows = dict[str, list[Any]]


def make_config(folder: Path, source: Any, **data: Any) -> Config:
    return parse_config({"data": {"source": str(source), "folder": str(folder), **data}}, "a test")


def write_log(path: Path, rows: Rows) -> Path:
    """Write columns in the format that the path's ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table(rows), path, row_group_size=7)
    elif path.suffix == ".jsonl":
        lines = (json.dumps(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True))
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix in (".tsv", ".inter") else ",")
            writer.writerow(rows)
            writer.writerows(zip(*rows.values(), strict=True))
    return path


def random_log(users: int, items: int, rows: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    return {
        "user_id": rng.integers(0, users, rows).tolist(),
        "item_id": (rng.integers(0, items, rows) * rng.random(rows)).astype(int).tolist(),
        "rating": rng.integers(1, 6, rows).astype(float).tolist(),
        "timestamp": rng.integers(0, 50, rows).tolist(),
    }


def digest(folder: Path) -> dict[str, str]:
    """sha256 of every file of a prepared folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(name="make_config")
def _make_config() -> Callable[..., Config]:
    return make_config


@pytest.fixture(name="write_log")
def _write_log() -> Callable[[Path, Rows], Path]:
    return write_log


@pytest.fixture(name="random_log")
def _random_log() -> Callable[..., Rows]:
    return random_log


@pytest.fixture(name="digest")
def _digest() -> Callable[[Path], dict[str, str]]:
    return digest


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """600 users over 80 items, 3 buckets, row groups of 32 users, with timestamps."""
    folder = tmp_path_factory.mktemp("prepared")
    source = write_log(folder / "log.parquet", random_log(600, 80, 6000))
    columns = {"timestamp": "timestamp"}
    prepare(make_config(folder / "data", source, columns=columns, buckets=3, users_per_row_group=32))
    return Prepared(folder / "data")
