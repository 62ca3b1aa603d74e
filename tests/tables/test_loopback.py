"""The byte meter against the loopback interface's own counters, in a network namespace where nobody else talks."""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing as mp
import os
import socket
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hse_dist.config import TrainSettings, WireSettings
from hse_dist.ranks import Ranks
from hse_dist.tables.layout import RowLayout
from hse_dist.tables.sharded import OwnedRows, PackedTable
from hse_dist.testing.ranks import run_ranks

ROWS, CANDIDATES, LIVE, DIMS, STEPS = 20_000, 6_000, 32, 4096, 5
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
GET_FLAGS, SET_FLAGS, UP = 0x8913, 0x8914, 1
TOLERANCE = 0.15
WIRES = [WireSettings(), WireSettings(gradients="bfloat16", gradient_slots=4)]


def alone() -> bool:
    """Move this process into a network of its own, with nothing but a loopback interface; whether that is allowed."""
    if ctypes.CDLL(None).unshare(NEW_USER | NEW_NETWORK):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, GET_FLAGS, request))
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh14x", b"lo", flags | UP))
    return True


def loopback_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])  # sent; on a loopback interface as much is received


def talk(ranks: Ranks, wire: WireSettings) -> tuple[dict[str, int], int]:
    """Steps of a lookup and its gradients, and a move of all chunks: what the meter says, and the interface."""
    layout = RowLayout.from_lengths(np.full(ROWS, LIVE), 16)
    table = PackedTable(layout, DIMS, ranks, TrainSettings(), "row_wise", with_gains=True, wire=wire)
    first, last = table.row_ranges[ranks.rank]
    slots = (last - first) * LIVE
    columns = np.arange(slots, dtype=np.int32) % DIMS
    offsets = np.arange(last - first + 1) * LIVE
    table.put_back(OwnedRows(first, last, offsets, np.ones(slots, np.float32), columns, DIMS))
    table.set_gains(lambda begin, end: np.ones(end - begin, np.float32))
    rng = np.random.default_rng(ranks.rank)
    ranks.barrier()
    before, counted = loopback_bytes(), dict(ranks.meter.sent)
    for _ in range(STEPS):
        rows = table.lookup(torch.from_numpy(rng.permutation(ROWS)[:CANDIDATES]))
        (rows.values.square().sum() + rows.gains.sum()).backward()
    ranks.exchange([torch.zeros(100_000), torch.zeros(100_000)])
    ranks.barrier()
    return ranks.meter.since(counted), loopback_bytes() - before


def measure(pipe: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    apart = alone()
    pipe.send([run_ranks(talk, 2, wire) for wire in WIRES] if apart else None)


@pytest.mark.slow
@pytest.mark.distributed
def test_the_meter_agrees_with_the_interface():
    context = mp.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=measure, args=(there,))
    process.start()
    there.close()
    found = here.recv()
    process.join(timeout=60)
    if found is None:
        pytest.skip("this machine lets no process have a network of its own")
    for answers in found:
        counted = {kind: sum(answer[0][kind] for answer in answers) for kind in answers[0][0]}
        assert all(counted.values())
        interface = answers[0][1]
        assert abs(sum(counted.values()) - interface) < TOLERANCE * interface, (counted, interface)
    whole, strongest = (answers[0][1] for answers in found)
    assert strongest < 0.75 * whole
