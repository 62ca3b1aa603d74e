"""One rank on every device and in every kind of memory: what is looked up, learned and rewritten is the same.

Rates are such that a cache that is not written back, or not emptied, would show: rows are read and written beside the
lookup between two steps, and the cache has room for a fifth of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hse_dist.config import ModelSettings, TrainSettings
from hse_dist.config.contradictions import MOST_DENSE_ON_GPU
from hse_dist.data.batch import Batch
from hse_dist.errors import ConfigError
from hse_dist.model.autoencoder import Autoencoder
from hse_dist.ranks import Ranks
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.repack import put_in, take_out
from hse_dist.tables.shard_memory import ShardMemory
from hse_dist.tables.sharded import DenseTable, PackedTable
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.tables import Content, read_all

ROWS, DIMS, WIDTH = 300, 64, 8
CONTENT = Content.random(0, ROWS, DIMS, WIDTH, longest=19, long_rows={5: 60, 11: 40})
SETTINGS = TrainSettings(learning_rate=0.1, gain_learning_rate=0.05, warm_accumulator=0.3)
gpu = pytest.mark.gpu
PLACES = [
    pytest.param("cpu", "fused", id="cpu"),
    pytest.param("cuda", "fused", marks=gpu, id="cuda"),
    pytest.param("cuda", "fused_uvm", marks=gpu, id="uvm"),
    pytest.param("cuda", "fused_uvm_caching", marks=gpu, id="uvm_caching"),
]


def batch(number: int, device: torch.device) -> Batch:
    """Forty candidates, ten histories of them."""
    rng = np.random.default_rng(number)
    lengths = rng.integers(1, 9, 10)
    positions = np.concatenate([rng.permutation(40)[:n] for n in lengths])
    parts = (np.sort(rng.permutation(ROWS)[:40]), np.concatenate([[0], np.cumsum(lengths)]), positions)
    return Batch(*(torch.from_numpy(part.astype(np.int64)).to(device) for part in parts))


def step(table: PackedTable, number: int) -> float:
    own = batch(number, table.ranks.device)
    loss, _ = Autoencoder(ModelSettings(row_norm="free")).loss(table.lookup(own.candidates), own, None)
    loss.backward()
    return float(loss.detach())


def live(ranks: Ranks, kernel: str) -> dict[str, Any]:
    """Steps, a rewrite of all rows, steps, a repack to wider rows, steps; what can be seen of it."""
    table = CONTENT.table(ranks, "row_wise", SETTINGS, with_gains=True, memory=ShardMemory(kernel))
    before = read_all(table)
    assert np.array_equal(before.values.detach().cpu().numpy(), np.concatenate(CONTENT.values))
    losses = [step(table, number) for number in range(6)]
    rows = table.owned()
    moved = rows.columns < DIMS
    rows.values[moved] *= 2
    rows.columns[moved] = DIMS - 1 - rows.columns[moved]
    table.put_back(rows)
    written = read_all(table).values.detach().cpu().numpy()
    assert np.array_equal(written, rows.values[moved]), "a lookup after a rewrite reads something else"
    losses += [step(table, number) for number in range(6, 9)]
    contents = take_out(table)
    del table
    table = put_in(contents, RowLayout.from_lengths(CONTENT.lengths + 9, WIDTH))
    losses += [step(table, number) for number in range(9, 12)]
    after = read_all(table)
    accumulators = [shard.float().cpu().numpy().ravel() for shard in table.accumulators("values")]
    return {
        "losses": np.array(losses),
        "values": after.values.detach().cpu().numpy(),
        "columns": after.columns.cpu().numpy(),
        "gains": after.gains.detach().cpu().numpy(),
        "accumulators": np.concatenate(accumulators),
        "held": table.owned().values.copy(),
    }


@pytest.mark.distributed
@pytest.mark.parametrize(("device", "kernel"), PLACES)
def test_a_table_lives_the_same_life_in_every_memory(device, kernel):
    (expected,), (found,) = run_ranks(live, 1, "fused"), run_ranks(live, 1, kernel, device=device)
    assert np.array_equal(found["columns"], expected["columns"])
    for name in ("losses", "values", "gains", "accumulators", "held"):
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-4, atol=2e-5, err_msg=name)
    assert np.ptp(expected["losses"]) > 0.01 and (expected["accumulators"] > 0.3).any()


@pytest.mark.parametrize("kernel", ["fused_uvm", "fused_uvm_caching"])
def test_the_memory_of_gpus_is_for_gpus(make_config, kernel):
    item = {"live": 4, "kernel": kernel}
    assert make_config(tables={"item": item}, cluster={"device": "cuda"}).tables.item.kernel == kernel
    with pytest.raises(ConfigError, match=rf'tables\.item\.kernel = "{kernel}".*cluster\.device = "cpu"'):
        make_config(tables={"item": item})


@gpu
def test_what_lies_in_the_host_takes_none_of_the_gpu():
    held = {kernel: run_ranks(allocated, 1, kernel, device="cuda")[0] for kernel in ("fused", "fused_uvm_caching")}
    slots = 4 * 200_000 * 32
    assert held["fused"] > 2 * slots and held["fused_uvm_caching"] < 0.35 * held["fused"]


def allocated(ranks: Ranks, kernel: str) -> int:
    layout = RowLayout.from_lengths(np.full(200_000, 32), 32)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    table = PackedTable(layout, 512, ranks, SETTINGS, "row_wise", with_gains=False, memory=ShardMemory(kernel))
    found = torch.cuda.memory_allocated() - before
    assert table.rows == 200_000
    return found


@gpu
@pytest.mark.parametrize("dims", [1024, MOST_DENSE_ON_GPU])
def test_wide_dense_rows_learn_on_a_gpu_what_they_learn_on_a_cpu(dims):
    expected, found = (run_ranks(dense_steps, 1, dims, device=device)[0] for device in ("cpu", "cuda"))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert np.ptp(found) > 0.1


def dense_steps(ranks: Ranks, dims: int) -> np.ndarray:
    table = DenseTable(ROWS, dims, ranks, SETTINGS, "row_wise")
    start = torch.randn(ROWS, dims, generator=torch.Generator().manual_seed(0)) / dims**0.5
    table.local_values().copy_(start)
    for number in range(4):
        own = batch(number, ranks.device)
        loss, _ = Autoencoder(ModelSettings(row_norm="unit")).loss(table.lookup(own.candidates), own, None)
        loss.backward()
    return table.local_values().cpu().numpy()
