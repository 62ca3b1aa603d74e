"""What generated cases have found, each as it was found: a traceback, an endless wait or nonsense taken for good."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hse_dist import cluster
from hse_dist.checkpoint.manifest import Damaged, Manifest
from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.config import load_config, parse_config
from hse_dist.data import catalog
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.data.reader import read
from hse_dist.data.schema import plan
from hse_dist.data.source import find_files
from hse_dist.errors import DataError, ExportError, RunFolderError, TrainingError
from hse_dist.evaluate.metrics import METRICS, read_users
from hse_dist.export.format import RowBlock, load_export, write_export
from hse_dist.report.page import make_page
from hse_dist.run_folder import RunFolder, stored_config
from hse_dist.sparsity.snapshot import read_snapshot
from hse_dist.sparsity.start.folder import StartFolder, write_entries, write_rows
from hse_dist.testing.hostile import survives
from hse_dist.train.metrics import keep_until


@pytest.mark.parametrize("value", ["9" * 5000, "0x" + "f" * 5000, "[" * 3000, "-" + "9" * 30])
def test_numbers_and_depths_that_toml_does_not_have(tmp_path: Path, value: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f"[train]\nepochs = {value}\n")
    assert survives(lambda: load_config(path), path) is not None
    path.write_text("")
    said = survives(lambda: load_config(path, [f"train.epochs={value}"]), path)
    assert said is not None and len(str(said)) < 600


LOGS = {
    "twice.parquet": pa.Table.from_arrays([pa.array([1])] * 3, ["item_id", "user_id", "user_id"]),
    "text.parquet": pa.table({"user_id": [1], "item_id": pa.array([b"\xff"]).view(pa.string())}),
    "name.csv": b"\xf5ser_id,item_id\n1,2\n",
}  # fmt: skip


@pytest.mark.parametrize("name", LOGS)
def test_logs(tmp_path: Path, name: str) -> None:
    path, content = tmp_path / name, LOGS[name]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(content, path)
    data = parse_config({"data": {"source": str(path)}}, "a test").data

    def work() -> None:
        schema, fragments = plan(find_files(data.source), data)
        for fragment in fragments:
            list(read(fragment, schema, data.columns, None))

    assert survives(work, path) is not None


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    data = {"source": "synthetic", "synthetic": {"users": 40, "items": 20, "mean_history": 6}, "buckets": 1}
    prepare(parse_config({"data": {**data, "folder": str(tmp_path / "data")}}, "a test"))
    return tmp_path / "data"


def change(path: Path, *keys: Any, value: Any) -> None:
    tree = json.loads(path.read_text())
    table = tree
    for key in keys[:-1]:
        table = table[key]
    table[keys[-1]] = value
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("items",), 19),
        (("items",), 2**60),
        (("files", "train", 0, "path"), "../../etc/passwd"),
        (("files", "train", 0, "path"), "/etc/passwd"),
        (("files", "train", 0, "path"), None),
        (("files", "train", 0, "users"), 2**60),
        (("files", "train", 0, "row_groups"), [2**60]),
        (("files", "train", 0), "x"),
        (("files", "valid"), {}),
    ],
)
def test_manifests_of_prepared_folders(prepared: Path, keys: tuple[Any, ...], value: Any) -> None:
    change(prepared / "manifest.json", *keys, value=value)

    def use() -> None:
        found = Prepared(prepared)
        found.counts()
        found.matrix("train")

    assert survives(use, prepared) is not None


@pytest.mark.parametrize("rows", [[[20]], [[None]], [None], [[2**32 - 1]]])
def test_histories_of_items_that_are_none(prepared: Path, rows: list[Any]) -> None:
    path = prepared / json.loads((prepared / "manifest.json").read_text())["files"]["train"][0]["path"]
    users = pq.read_table(path).num_rows
    column = pa.array(rows + [[0]] * (users - 1), pa.list_(pa.uint32()))
    pq.write_table(pa.table({"user": pa.array(range(users)), "rows": column}), path)
    with pytest.raises(DataError, match=r"missing rows|has row .* of 20 items"):
        Prepared(prepared).matrix("train")


@pytest.mark.parametrize(
    ("columns", "values"), [([0, 5], [1, 1]), ([3, 3], [1, 1]), ([4, 2], [1, 1]), ([0, 1], [1, np.nan])]
)
def test_starts_beyond_their_columns(tmp_path: Path, columns: list[int], values: list[float]) -> None:
    write_rows(tmp_path, 0, np.array([2]), np.ones(1, np.float32))
    write_entries(tmp_path, 0, np.zeros(2, np.int64), np.array(columns), np.array(values))
    (tmp_path / "manifest.json").write_text(json.dumps({"version": 1, "rows": 1, "dims": 5, "live_entries": 2}))
    with pytest.raises(DataError, match="fall or are beyond 5, or values that are not finite"):
        StartFolder(tmp_path).entries()
    change(tmp_path / "manifest.json", "dims", value=2**40)
    with pytest.raises(DataError, match=f"dims = {2**40}"):
        StartFolder(tmp_path)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    block = RowBlock(np.arange(6), np.arange(5), np.ones(5, np.float32), np.ones(5, np.float32))
    ids = pa.array(range(5))
    write_export(tmp_path / "export", [block], item_ids=ids, dims=8, row_norm="free", form="csr")
    return tmp_path / "export"


@pytest.mark.parametrize(("key", "value"), [("dims", 2**60), ("items", 0), ("live_entries", -1), ("format", [])])
def test_manifests_of_exports(export: Path, key: str, value: Any) -> None:
    """`dims` made kernels ask for 2^60 vectors."""
    change(export / "manifest.json", key, value=value)
    with pytest.raises(ExportError):
        load_export(export)


def rewrite(export: Path, name: str, content: bytes) -> None:
    import hashlib

    (export / name).write_bytes(content)
    change(
        export / "manifest.json",
        "files",
        name,
        value={"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
    )


def npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_values_that_make_no_scores(export: Path, value: float) -> None:
    rewrite(export, "values.npy", npy(np.array([1, 1, value, 1, 1], np.float32)))
    with pytest.raises(ExportError, match="not finite, or above"):
        load_export(export)


def test_an_array_that_claims_more_than_there_is(export: Path) -> None:
    content = npy(np.ones(5, np.float32)).replace(b"(5,), }", f"({2**60},), }}".encode()[:7].ljust(7))
    rewrite(export, "values.npy", content)
    with pytest.raises(ExportError, match=r"values\.npy"):
        load_export(export)


@pytest.mark.parametrize("ids", [[1, 1, 2, 3, 4], [1, None, 2, 3, 4], [1.5, 2.5, 3.5, 4.5, 5.5]])
def test_ids_that_name_no_item(export: Path, ids: list[Any]) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"item": ids, "gain": pa.array(np.ones(5), pa.float32())}), sink)
    rewrite(export, "items.parquet", sink.getvalue())
    with pytest.raises(ExportError, match="ids"):
        load_export(export)


def test_a_checkpoint_of_old_without_a_step(tmp_path: Path) -> None:
    stored = Path(__file__).parents[1] / "checkpoint" / "stored" / "format-3" / "step-00000007"
    shutil.copytree(stored, tmp_path / "step-00000007")
    change(tmp_path / "step-00000007" / "facts.json", "step", value="7.5")
    with pytest.raises(RunFolderError, match=r"has the step '7\.5'"):
        CheckpointStore(tmp_path, 2).all()


@pytest.mark.parametrize("line", [b"\xff\n", b'{"step": 1e400}\n', b"[" * 5000 + b"\n"])
def test_lines_that_are_none(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line)
    assert keep_until(path, 4) == ['{"step": 1}']


@pytest.mark.parametrize("event", [{"step": "x"}, {}, {"step": {}}, {"step": 10**400}, {"step": 3, "wire_bytes": 7}])
def test_the_page_of_a_run_with_odd_lines(tmp_path: Path, event: dict[str, Any]) -> None:
    config = parse_config({"run": {"folder": str(tmp_path)}}, "a test")
    RunFolder(config).claim()
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "train", **event}) + "\n")
    assert "<h1>" in make_page(tmp_path)


@pytest.mark.parametrize("depth", [60, 800, 950, 20_000])
def test_json_in_json_in_json(tmp_path: Path, depth: int) -> None:
    for path in (tmp_path / "config.json", tmp_path / "manifest.json"):
        path.write_text('{"a":' * depth + "1" + "}" * depth)
    for action in (make_page, stored_config, StartFolder, Prepared, load_export):
        assert survives(lambda action=action: action(tmp_path), tmp_path) is not None
    with pytest.raises(Damaged):
        Manifest.parse((tmp_path / "manifest.json").read_bytes(), "here")


@pytest.mark.parametrize("value", [[0.5], None, "x", float("nan")])
def test_metrics_of_users_that_are_no_numbers(tmp_path: Path, value: Any) -> None:
    pq.write_table(pa.table({"user": [1], **{name: [value] for name in METRICS}}), tmp_path / "u.parquet")
    with pytest.raises(DataError, match=r"u\.parquet"):
        read_users(tmp_path / "u.parquet")


def test_downloads_that_are_no_data_set() -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(catalog.TABLES[catalog.NAME].members[0], b"1\t2\t3\t4\n")
    whole = sink.getvalue()
    at = whole.index(b"PK\x01\x02")
    for flags, method in ((1, 0), (0, 99)):  # encrypted; packed in a way that nobody knows
        content = bytearray(whole)
        for place in (6, at + 8):
            content[place], content[place + 2] = flags, method
        with pytest.raises(DataError, match="the mirror does not hold"):
            catalog.check(bytes(content), "the mirror")
    with pytest.raises(DataError, match="numbers are missing"):
        catalog.check(b"1\t2\t3\t\n", "the mirror")
    for name, line in (
        ("users", b"1|24|M|x"),
        ("items", b"1|x (1999)|0|1"),
        ("items", b"item_id\n" + b"9" * 30 + b"\tx\t1\t"),
    ):
        with pytest.raises(DataError, match=f"the mirror does not hold ml-100k/{name}"):
            catalog.check(line, "the mirror", f"ml-100k/{name}")


def test_a_spoilt_cache_is_fetched_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / catalog.NAME / "interactions.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1")
    monkeypatch.setenv("HSE_DATA_ML_100K", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"names .*nowhere, but there is no such file"):
        catalog.fetch(catalog.NAME, tmp_path)


@pytest.mark.parametrize("kind", ["annotations", "_rebuild", "Exception", None, 3])
def test_the_error_of_a_worker_is_one_of_ours(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "e.json").write_text(json.dumps({"kind": kind, "what": "x"}))
    assert type(cluster._lasting_error(tmp_path / "e.json")) is TrainingError


@pytest.mark.parametrize("ranks", [2**60, "2", -1, None])
def test_a_snapshot_of_ranks_that_cannot_be(tmp_path: Path, ranks: Any) -> None:
    server = {"version": 0, "journal": [{"version": 0, "step": 0}]}
    tree = {"name": "a", "fingerprint": "f", "attempt": "b", "ranks": ranks, "steps": 1, "sequence": 1, "stop": False}
    (tmp_path / "s.json").write_text(json.dumps({**tree, "server": server}))
    assert read_snapshot(tmp_path / "s.json", "a", "f") is None
