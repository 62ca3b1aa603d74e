"""A checkpoint that somebody has changed, checksums and all: what it holds, or `RunFolderError`; nothing of it is run.

The stored checkpoint of format 4 is the good one. What a training run makes of changed facts and arrays is in the slow
tests: each case is a run that goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch.distributed.checkpoint import metadata as dcp_metadata

from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.config import Config
from hse_dist.data.prepare import prepare
from hse_dist.sparsity.snapshot import Snapshot, read_snapshot, write_snapshot
from hse_dist.testing.hostile import NUMBERS, damaged, few_and_many, hostile_json, survives
from hse_dist.testing.runs import small_config
from hse_dist.train.driver import train
from hse_dist.train.metrics import keep_until

STORED = Path(__file__).parents[1] / "checkpoint" / "stored" / "format-4" / "step-00000007"
NAMES = sorted(path.name for path in STORED.iterdir() if path.name != "manifest.json")
SHAPES = {"values": (17, 8), "columns": (17, 8), "gains": (14, 4)}


class Alone:
    """One rank, without a process group."""

    rank, size = 0, 1

    def gather(self, value: Any) -> list[Any]:
        return [value]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def copied(work: Path, source: Path = STORED) -> Path:
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    return Path(shutil.copytree(source, work / "checkpoints" / source.name))


def sign(folder: Path, changes: Callable[[dict[str, Any]], Any] = lambda plain: plain) -> None:
    """Make the manifest vouch for whatever the folder holds."""
    plain = json.loads((folder / "manifest.json").read_text())
    for path in folder.iterdir():
        if path.name != "manifest.json" and path.is_file():
            data = path.read_bytes()
            plain["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    plain = changes(plain)
    if isinstance(plain, dict):
        plain.pop("sha256", None)
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        plain["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(plain))


def stored_state() -> dict[str, Any]:
    """Tensors of the stored checkpoint's shapes, by its names."""
    metadata = pickle.loads((STORED / ".metadata").read_bytes())
    state: dict[str, Any] = {}
    for key, one in metadata.state_dict_metadata.items():
        *path, name = metadata.planner_data[key]
        table = state
        for part in path:
            table = table.setdefault(part, {})
        table[name] = torch.zeros(one.size, dtype=one.properties.dtype)
    return state


def use(work: Path) -> None:
    """All that is asked of a checkpoint before a table is made of it."""
    store = CheckpointStore(work / "checkpoints", 3)
    found = store.all()
    opened = store.open_latest(Alone())
    assert opened is not None and len(found) == 1 and opened.checked
    store.load_shared(opened)
    store.load_own(opened, Alone())
    store.load(opened, stored_state())


def check(work: Path) -> None:
    survives(lambda: use(work), work, "step-00000007", folder=work)


@few_and_many(40, 900, data=st.data())
def _damage(work: Path, data: st.DataObject) -> None:
    folder = copied(work)
    file = folder / data.draw(st.sampled_from([*NAMES, "manifest.json"]), "name")
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    if data.draw(st.booleans(), "signed") and file.name != "manifest.json":
        sign(folder)
    check(work)


@few_and_many(40, 900, data=st.data())
def _manifests(work: Path, data: st.DataObject) -> None:
    folder = copied(work)
    sign(folder, lambda plain: data.draw(hostile_json(plain), "manifest"))
    check(work)


@few_and_many(40, 700, data=st.data())
def _facts(work: Path, data: st.DataObject) -> None:
    folder = copied(work)
    facts = json.loads((folder / "facts.json").read_text())
    (folder / "facts.json").write_text(json.dumps(data.draw(hostile_json(facts), "facts")))
    if data.draw(st.integers(0, 3)):
        sign(folder)
    else:  # as one of format 3, which has no manifest
        (folder / "manifest.json").unlink()
    check(work)


@st.composite
def hostile_arrays(draw: st.DrawFn, good: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Other numbers, types, shapes and names."""
    arrays = dict(good)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(arrays)))
        array = arrays.pop(name)
        kind = draw(st.sampled_from(("numbers", "numbers", "type", "shape", "remove", "rename")))
        if kind == "numbers" and array.size:
            array = array.copy()
            number = draw(st.sampled_from([n for n in NUMBERS if abs(n) < 2**63]))
            array.reshape(-1)[draw(st.integers(0, array.size - 1))] = np.array(number).astype(array.dtype)
        elif kind == "type":
            array = array.astype(draw(st.sampled_from(("f4", "i8", "U3", "u1", "c8", "M8[s]", "?"))))
        elif kind == "shape":
            array = np.atleast_1d(array)
            array = draw(st.sampled_from((array[:0], array[:1], array.reshape(-1, 1), np.array(3), array[None])))
        if kind != "remove":
            arrays["other" if kind == "rename" else name] = array
        if not arrays:
            break
    return arrays


def archive(arrays: dict[str, np.ndarray]) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


@few_and_many(30, 700, data=st.data())
def _arrays(work: Path, data: st.DataObject) -> None:
    folder = copied(work)
    file = folder / data.draw(st.sampled_from([name for name in NAMES if name.endswith(".npz")]), "name")
    content = data.draw(
        st.one_of(hostile_arrays(arrays_in(file)).map(archive), damaged(file.read_bytes()), bombs(file.read_bytes()))
    )
    file.write_bytes(content)
    sign(folder)
    check(work)


def bombs(good: bytes) -> st.SearchStrategy[bytes]:
    """An array that claims to be far longer than the archive; headers have room for that."""
    places = [at for at in range(len(good)) if good.startswith(b"'shape': (", at)]

    def change(at: int, count: int) -> bytes:
        end = good.index(b"}", at)
        text = f"'shape': ({count},), ".encode()
        room = good.index(b"\n", end) - at
        return good[:at] + (text + b"}").ljust(room)[:room] + good[at + room :]

    return st.builds(change, st.sampled_from(places), st.sampled_from((2**30, 2**40, 2**60, 2**62)))


def _set(thing: Any, name: str, value: Any) -> Any:
    object.__setattr__(thing, name, value)
    return thing


@few_and_many(40, 700, data=st.data())
def _metadata(work: Path, data: st.DataObject) -> None:
    """torch's own description of the shards, with other sizes, files and kinds."""
    folder = copied(work)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    key = data.draw(st.sampled_from(sorted(metadata.state_dict_metadata)), "key")
    tensor = metadata.state_dict_metadata[key]
    index = data.draw(st.sampled_from(sorted(metadata.storage_data, key=str)), "index")
    stored, number = metadata.storage_data[index], data.draw(st.sampled_from(NUMBERS), "number")
    match data.draw(st.sampled_from(("size", "chunk", "path", "range", "bytes", "none", "other", "kind", "drop"))):
        case "size":
            _set(tensor, "size", (number, 8))
        case "chunk":
            sizes = data.draw(st.sampled_from(((number, 8), (-1,), (), (2**40, 2**40))))
            tensor.chunks[0] = dcp_metadata.ChunkStorageMetadata(torch.Size([0, 0]), sizes)
        case "path":
            outside = data.draw(st.sampled_from(("/etc/passwd", "../../x", "", "facts.json", None, 3)))
            metadata.storage_data[index] = replace(stored, relative_path=outside)
        case "range":
            metadata.storage_data[index] = replace(stored, offset=number, length=data.draw(st.sampled_from(NUMBERS)))
        case "bytes":
            metadata.state_dict_metadata[key] = dcp_metadata.BytesStorageMetadata()
        case "none":
            metadata.storage_data = None
        case "other":
            metadata = data.draw(st.sampled_from((None, 3, [], {}, dcp_metadata.StorageMeta())))
        case "kind":
            _set(tensor, "properties", None)
        case "drop":
            del metadata.storage_data[index]
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    sign(folder)
    check(work)


GOOD = Snapshot("a", "f", "b", 2, 9, 4, {"version": 1, "journal": [{"version": 1, "step": 3, "live": 4}]}, False)


@few_and_many(80, 800, data=st.data())
def _snapshots(work: Path, data: st.DataObject) -> None:
    path = work / "server.json"
    write_snapshot(path, GOOD)
    tree = json.loads(path.read_text())
    changed = hostile_json(tree).map(lambda tree: json.dumps(tree).encode())
    path.write_bytes(data.draw(st.one_of(changed, damaged(path.read_bytes()), st.just(b"[" * 100_000))))
    # a server that cannot use it begins without one: it says so in the log and raises nothing
    assert survives(lambda: _of_use(read_snapshot(path, "a", "f")), folder=work) is None
    write_snapshot(path, GOOD)
    assert read_snapshot(path, "a", "f") == GOOD and read_snapshot(path, "b", "f") is None


def _of_use(found: Snapshot | None) -> None:
    if found is not None:
        assert found.ranks + found.steps + found.sequence >= 0 and found.server["journal"][-1]["version"] >= 0


LINES = b"".join(json.dumps({"kind": "train", "step": step, "loss": 0.5}).encode() + b"\n" for step in range(9))


@few_and_many(80, 800, content=damaged(LINES), more=st.sampled_from((b"", b"[" * 5000, b'{"step": 1e400}', b"\xff")))
def _lines(work: Path, content: bytes, more: bytes) -> None:
    path = work / "metrics.jsonl"
    path.write_bytes(content + more)
    survives(lambda: keep_until(path, 4), folder=work)


test_damage, test_much_damage = _damage
test_manifests, test_many_manifests = _manifests
test_facts, test_many_facts = _facts
test_arrays, test_many_arrays = _arrays
test_metadata, test_many_metadata = _metadata
test_snapshots, test_many_snapshots = _snapshots
test_lines, test_many_lines = _lines


class Trace:
    """What a hostile pickle does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_shard_that_calls_itself_an_object_is_not_unpickled(tmp_path: Path) -> None:
    """torch's own planner unpickles what metadata call bytes."""
    folder, trace = copied(tmp_path), tmp_path / "trace"
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    sink = io.BytesIO()
    torch.save(Trace(trace), sink)
    name = next(name for name in NAMES if name.endswith(".distcp"))
    (folder / name).write_bytes(sink.getvalue())
    for key in metadata.state_dict_metadata:
        metadata.state_dict_metadata[key] = dcp_metadata.BytesStorageMetadata()
        index = dcp_metadata.MetadataIndex(key)
        some = next(iter(metadata.storage_data.values()))
        metadata.storage_data[index] = replace(some, relative_path=name, offset=0, length=len(sink.getvalue()))
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    sign(folder)
    said = survives(lambda: use(tmp_path), "is no tensor")
    assert said is not None and not trace.exists()


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b".",  # remembers the 2^32nd object
        b"\x80\x04\x96" + struct.pack("<Q", 2**60) + b".",  # a bytearray of 2^60 bytes
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".",
        b"\x80\x04" + b"(" * 1_000_000,
        b"",
    ],
)
def test_a_pickle_that_claims_memory_is_refused(tmp_path: Path, bomb: bytes) -> None:
    folder = copied(tmp_path)
    (folder / ".metadata").write_bytes(bomb)
    sign(folder)
    assert survives(lambda: use(tmp_path), ".metadata") is not None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("run")
    config = small_config(
        folder / "run", folder / "data", train__epochs=1, train__checkpoint_every=5, checkpoint__keep=9
    )
    prepare(config)
    train(config)
    return config


def resume(trained: Config, folder: Path, change: Callable[[Path], None]) -> None:
    """Go on from the checkpoint after the fifth step, whose manifest vouches for a change; the sixth rewires."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.copytree(trained.run.folder, folder / "run")
    raw = trained.model_dump(mode="json")
    config = Config.model_validate_json(json.dumps({**raw, "run": {**raw["run"], "folder": str(folder / "run")}}))
    fifth = folder / "run" / "checkpoints" / "step-00000005"
    for other in fifth.parent.glob("step-*"):
        if other != fifth:
            shutil.rmtree(other)
    change(fifth)
    sign(fifth)
    survives(lambda: train(config), folder / "run", "checkpoint", folder=folder)


@few_and_many(2, 60, data=st.data())
def _resumed(trained: Config, work: Path, data: st.DataObject) -> None:
    def change(folder: Path) -> None:
        if data.draw(st.booleans(), "facts"):
            facts = json.loads((folder / "facts.json").read_text())
            (folder / "facts.json").write_text(json.dumps(data.draw(hostile_json(facts), "changed")))
            return
        file = data.draw(st.sampled_from(sorted(folder.glob("*.npz"))), "file")
        file.write_bytes(archive(data.draw(hostile_arrays(arrays_in(file)), "arrays")))

    resume(trained, work, change)


test_resumed, test_many_resumed = _resumed
