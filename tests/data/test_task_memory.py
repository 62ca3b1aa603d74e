from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from hse_dist.data import task_memory
from hse_dist.data.task_memory import TaskMemory, memory_bytes

ROOT = Path(__file__).resolve().parents[2]
MEMORY_MB = 64
PREPARE = """
import json, sys
import pyarrow as pa
import hse_dist.data.prepare as prepare
from hse_dist.config import parse_config

pa.array([0]).to_numpy()  # pyarrow imports pandas here
peaks = {}

def resident(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

def map_tasks(function, arguments, *, label, **_):
    results = []
    for argument in arguments:
        open("/proc/self/clear_refs", "w").write("5")
        before = resident("VmRSS:")
        results.append(function(argument))
        peaks[label] = max(peaks.get(label, 0), resident("VmHWM:") - before)
    return results

prepare.map_tasks = map_tasks
result = prepare.prepare(parse_config({"data": json.loads(sys.argv[1])}, "of the test"))
print(json.dumps({"peaks": peaks, "said": result["task_memory_mb"]}))
"""


def write_log(path: Path, *, strings: bool) -> None:
    """One row group, many times what a task may hold at a time; hardly a user comes twice."""
    rng = np.random.default_rng(0)
    rows = 700_000 if strings else 1_500_000
    ids = [pa.array(rng.integers(0, bound, rows)) for bound in (1 << 40, 100_000)]
    if strings:
        ids = [pc.binary_join_element_wise("a user or item ", column.cast(pa.string()), "") for column in ids]
    times = pa.array(rng.integers(0, 10**9, rows))
    pq.write_table(pa.table([*ids, times], names=["user_id", "item_id", "time"]), path, row_group_size=rows)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not count a peak anew")
@pytest.mark.parametrize("strings", [False, True])
def test_no_task_takes_more_than_the_setting(tmp_path: Path, strings: bool) -> None:
    write_log(tmp_path / "log.parquet", strings=strings)
    data = {"source": str(tmp_path / "log.parquet"), "folder": str(tmp_path / "data"), "memory_mb": MEMORY_MB}
    words = json.dumps({**data, "columns": {"timestamp": "time"}})
    # a process of its own: this one holds freed memory that a task would take without a trace
    done = subprocess.run([sys.executable, "-c", PREPARE, words], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["peaks"]) == {"prepare spill", "prepare group", "prepare count", "prepare write"}
    assert max(found["peaks"].values()) <= MEMORY_MB, found
    assert 1 < found["said"] <= MEMORY_MB


def test_the_peak_of_a_block_is_seen_and_forgotten() -> None:
    with TaskMemory() as large:
        np.ones(5 << 20).sum()
    with TaskMemory() as small:
        np.ones(1 << 17).sum()
    if large.peak is None or small.peak is None:
        pytest.skip("the system does not count a peak anew")
    assert 39 << 20 <= large.peak < 60 << 20 and small.peak < 20 << 20


def test_arrow_allocates_as_before_after_a_task() -> None:
    before = pa.default_memory_pool().backend_name
    with pytest.raises(KeyError), TaskMemory():
        assert pa.default_memory_pool().backend_name == "system"
        raise KeyError
    assert pa.default_memory_pool().backend_name == before


def test_without_the_systems_files_a_peak_is_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(task_memory, "SELF", tmp_path / "none")
    with TaskMemory() as memory:
        pass
    assert memory.peak is None


def test_some_of_the_setting_is_not_for_buffers(make_config: Any, tmp_path: Path) -> None:
    def of(memory_mb: int) -> float:
        return memory_bytes(make_config(tmp_path, "x", memory_mb=memory_mb).data) / 2**20

    assert [of(1), of(20), of(64), of(1024)] == [0.25, 5, 48, 1008]
