"""An export that somebody has changed, checksums and all, in every format: answers, or an `ExportError`; no crash.

Most cases go to a process of their own: compiled kernels read what these files say.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from hse_dist.export.features import Source
from hse_dist.export.format import RowBlock, write_export
from hse_dist.testing.hostile import bomb, damaged, few_and_many, hostile_json, hostile_table
from hse_dist.testing.victim import Victim

FORMATS = ("parquet", "csr", "ell", "bitmap", "delta", "block", "mapped", "indexed")
WITH_FEATURES = ("csr", "mapped")
ITEMS, DIMS = 30, 300
NUMBERS = (0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 255, 65_535)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export in each format."""
    folder, rng = tmp_path_factory.mktemp("good"), np.random.default_rng(1)
    lengths = rng.integers(0, 9, ITEMS)
    columns = np.concatenate([np.sort(rng.permutation(DIMS)[:n]) for n in lengths]).astype(np.int64)
    values = rng.normal(size=len(columns)).astype(np.float32)
    block = RowBlock(np.concatenate([[0], np.cumsum(lengths)]), columns, values, rng.normal(size=ITEMS).astype("f4"))
    for form in FORMATS[:-1]:
        ids = pa.array([f"i{i}" for i in range(ITEMS)]) if form == "csr" else pa.array(range(100, 100 + ITEMS))
        known: dict[str, Source] = {}
        if form in WITH_FEATURES:
            known = {
                "age": (pa.array(range(ITEMS)), [block]),
                "tags": (pa.array([f"t{i}" for i in range(ITEMS)]), [block]),
            }
        write_export(
            folder / form, [block], item_ids=ids, dims=DIMS, row_norm="free", form=form, user_entries=20, features=known
        )
    # lists that are long enough for an index
    columns = np.tile(np.arange(4), 400)
    block = RowBlock(np.arange(0, 1601, 4), columns, rng.normal(size=1600).astype("f4"), np.ones(400, np.float32))
    ids = pa.array([f"i{i}" for i in range(400)])
    write_export(folder / "indexed", [block], item_ids=ids, dims=4, row_norm="free", form="mapped")
    return folder


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Victim() as one:
        yield one


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def copied(good: Path, work: Path, form: str) -> Path:
    shutil.rmtree(work / "export", ignore_errors=True)
    return Path(shutil.copytree(good / form, work / "export"))


def forge(folder: Path, name: str, content: bytes, **changes: Any) -> None:
    """Write a file, and vouch for it in the manifest."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def check(victim: Victim, folder: Path) -> str | None:
    said = victim.use(folder)
    assert said is None or str(folder) in said, said
    return said


@st.composite
def hostile_array(draw: st.DrawFn, content: bytes) -> bytes:
    """An .npy file with other numbers in it; or another type or shape in its header."""
    if draw(st.integers(0, 3)) == 0:
        shape = draw(st.sampled_from((f"({2**60},)", "(0,)", "(-1,)", "()", f"({2**33}, {2**33})", "(3, 'a')", "1")))
        descr = draw(st.sampled_from(("<f4", "|O", "<u8", "<i8", "<f8", "|V0", ">u4", "('<f4', (2**40,))", "|S0")))
        header = repr({"descr": descr, "fortran_order": False, "shape": None}).replace("None", shape)
        return content[:10] + header.ljust(117)[:117].encode() + b"\n" + content[128:]
    array = np.load(io.BytesIO(content)).copy()
    flat = array.reshape(-1)
    for _ in range(draw(st.integers(1, 3))):
        if len(flat):
            at = draw(st.integers(0, len(flat) - 1))
            if array.dtype.kind == "f":
                flat[at] = draw(st.sampled_from((np.nan, np.inf, -np.inf, -0.0, 0.0, 1e30, 3.4e38)))
            else:
                number = draw(st.sampled_from((*NUMBERS, DIMS, ITEMS, -(2**31), -(2**63))))
                flat[at] = np.array(number % 2**64, np.uint64).astype(array.dtype)
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def to_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@few_and_many(100, 3500, data=st.data())
def _files(good: Path, work: Path, victim: Victim, data: st.DataObject) -> None:
    folder = copied(good, work, data.draw(st.sampled_from(FORMATS), "form"))
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".npy", ".parquet", ".arrow"))
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True), "names"):
        content = (folder / name).read_bytes()
        if name.endswith(".npy"):
            kinds = [hostile_array(content)] * 3
        elif name.endswith(".arrow"):
            kinds = []
        else:
            kinds = [bomb(content)] + [hostile_table(pq.read_table(io.BytesIO(content))).map(to_parquet)] * 3
        forge(folder, name, data.draw(st.one_of(*kinds, damaged(content))))
    check(victim, folder)


@few_and_many(60, 2000, data=st.data())
def _manifests(good: Path, work: Path, victim: Victim, data: st.DataObject) -> None:
    folder = copied(good, work, data.draw(st.sampled_from(FORMATS), "form"))
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    parts = [
        {name: tree[name] for name in ("storage", "features") if name in tree},
        {key: value for key, value in tree.items() if key != "files"},
        tree,
    ]
    part = data.draw(st.sampled_from(parts).flatmap(hostile_json), "tree")
    whole = {**tree, **part} if isinstance(part, dict) and part.keys() < tree.keys() else part
    path.write_bytes(data.draw(st.one_of(st.just(json.dumps(whole).encode()), damaged(path.read_bytes()))))
    check(victim, folder)


test_files, test_many_files = _files
test_manifests, test_many_manifests = _manifests
