"""Checks that may crash or hang their process, and therefore have one of their own: `python -m hse_dist.doctor.probe`.

In: the name of a probe and its words. Out: findings as a JSON list, the last line of standard output. A wrong pair of
torch and fbgemm ends the process by a signal as often as by an exception; `examine.py` turns either into a finding.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

from hse_dist.doctor.finding import Finding
from hse_dist.doctor.machine import judge_skew
from hse_dist.doctor.versions import INSTALL

RANK_SECONDS = 40.0
"""Most of a wait between the two ranks; the second one imports torch first."""
TOGETHER = "Set GLOO_SOCKET_IFNAME to the interface that joins the machines (lo for one machine alone)."
"""What to do about collectives that fail."""


def libraries() -> list[Finding]:
    """One real operator of each of torch, fbgemm and TorchRec, the compiled kernels, the devices."""
    import torch

    found = [_operators(torch.device("cpu")), _update(torch.device("cpu")), _lookup(), _kernels(), _devices()]
    if torch.cuda.is_available():
        found += [_operators(torch.device("cuda")), _update(torch.device("cuda"))]
    return found


def _operators(device: Any) -> Finding:
    """An operator of fbgemm, with a known answer."""
    import fbgemm_gpu  # noqa: F401 (loads the operators)
    import torch

    lengths = torch.tensor([[1], [2]], dtype=torch.int32, device=device)
    _, values, _ = torch.ops.fbgemm.permute_2D_sparse_data(
        torch.tensor([1, 0], dtype=torch.int32, device=device), lengths, torch.tensor([7, 8, 9], device=device)
    )
    if values.tolist() != [8, 9, 7]:
        return Finding(f"fbgemm on {device}", "failed", f"permute gave {values.tolist()}, not [8, 9, 7]", INSTALL)
    return Finding(f"fbgemm on {device}", "ok", "permute_2D_sparse_data answers rightly")


def _update(device: Any) -> Finding:
    """The fused optimizer that tables are trained by: a row of ones with a gradient of ones and a rate of .5."""
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    cuda = device.type == "cuda"
    place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if cuda else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(4, 8, *place)], optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD, learning_rate=0.5, device=device
    )
    (weights,) = table.split_embedding_weights()
    weights.fill_(1.0)
    table(torch.tensor([2], device=device), torch.tensor([0, 1], device=device)).sum().backward()
    expected = torch.ones(4, 8)
    expected[2] = 0.5
    if not torch.allclose(weights.detach().cpu(), expected, atol=1e-4):
        return Finding(f"fused update on {device}", "failed", "row-wise Adagrad gave other rows", INSTALL)
    return Finding(f"fused update on {device}", "ok", "row-wise Adagrad answers rightly")


def _lookup() -> Finding:
    """TorchRec on top of both."""
    import torch
    from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

    config = EmbeddingConfig(name="t", num_embeddings=4, embedding_dim=8, feature_names=["f"])
    collection = EmbeddingCollection(tables=[config], device=torch.device("cpu"))
    rows = collection(KeyedJaggedTensor(["f"], torch.tensor([3, 1]), lengths=torch.tensor([2])))["f"].values()
    if not torch.equal(rows, collection.embeddings["t"].weight[[3, 1]]):
        return Finding("torchrec", "failed", "a lookup gave other rows", INSTALL)
    return Finding("torchrec", "ok", "an embedding collection answers rightly")


def _kernels() -> Finding:
    """Our own compiled kernels: there, loadable, and right."""
    import torch

    from hse_dist.native.library import library
    from hse_dist.tables.codecs import Columns

    if os.environ.get("HSE_NATIVE", "1") == "0":
        return Finding("compiled kernels", "warning", "left unused by HSE_NATIVE=0", "Unset it: all takes longer.")
    if library() is None:
        mend = "Install with a C++ compiler (GCC 12); in a Ray job set RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1."
        return Finding("compiled kernels", "warning", "not built or not loadable: all takes longer", mend)
    codec, numbers = Columns(1000), torch.tensor([0.0, 999.0, 1000.0])
    if not torch.equal(codec.decode(codec.encode(numbers)), numbers):
        return Finding("compiled kernels", "failed", "a codec gave other numbers", "Build them anew: make install.")
    return Finding("compiled kernels", "ok", "built, and a codec answers rightly")


def _devices() -> Finding:
    """CUDA devices, or none."""
    from importlib.metadata import PackageNotFoundError, version
    from shutil import which

    import torch

    cores = f"{len(os.sched_getaffinity(0))} cores"
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        text = ", ".join(f"{card.name} ({card.total_memory / 10**9:.0f} GB)" for card in cards)
        return Finding("devices", "ok", f"{cores}; {text}")
    try:
        version("fbgemm-gpu")
    except PackageNotFoundError:
        if which("nvidia-smi"):
            mend = "Install with DEVICE=cuda to use it."
            return Finding("devices", "warning", f"{cores}; a GPU's driver, but the set for the CPU", mend)
        return Finding("devices", "ok", f"{cores}; no CUDA device")
    mend = "Mend the driver, or install with DEVICE=cpu."
    return Finding("devices", "warning", f"{cores}; the set for CUDA, but no device that torch can use", mend)


def ranks() -> list[Finding]:
    """Two ranks over gloo: this process, and one that it starts."""
    from hse_dist.ranks import free_address

    address = free_address()
    other = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "hse_dist.doctor.probe", "rank", "--at", address])
    try:
        _rank(0, address)
        if other.wait(RANK_SECONDS):
            return [Finding("collectives", "failed", "rank 1 of 2 failed: its words stand above", TOGETHER)]
    finally:
        other.kill()
        other.wait()
    return [Finding("collectives", "ok", "2 gloo ranks sum, exchange and gather rightly")]


def _rank(number: int, address: str) -> None:
    """Rank `number` of 2: a sum, an exchange of unequal parts, a gathering."""
    import torch

    from hse_dist.ranks import process_group

    with process_group(number, 2, address, torch.device("cpu"), RANK_SECONDS) as ranks:
        total = ranks.sum(torch.tensor([float(number), 1.0])).tolist()
        parts = ranks.exchange([torch.full((number + to,), float(number)) for to in range(2)])
        gathered = ranks.gather(number)
    got = (total, [part.tolist() for part in parts], gathered)
    if got != ([1.0, 2.0], [[0.0] * number, [1.0] * (1 + number)], [0, 1]):
        raise RuntimeError(f"rank {number} of 2 received {got}")


def ray(address: str) -> list[Finding]:
    """A cluster of its own for a moment, or one that is there: a task, and every node's clock and versions."""
    import logging

    if not address:
        from hse_dist.loopback import keep_to_loopback

        keep_to_loopback()
    import ray as library

    began = time.perf_counter()
    local: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    options = {} if address else local
    library.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **options)
    try:
        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in library.nodes() if node["Alive"]}
        answers = {f"{where} ({node[:6]})": _ask(library, node) for node, where in nodes.items()}
    finally:
        library.shutdown()
    text = f"{'joined ' + address if address else 'started'}, {len(nodes)} node(s), a task on each"
    found = [Finding("ray", "ok", f"{text}, after {time.perf_counter() - began:.1f} s")]
    if address:
        found.append(_alike({where: answer[2] for where, answer in answers.items()}))
    return [*found, judge_skew({where: answer[:2] for where, answer in answers.items()})]


def _ask(library: Any, node: str) -> tuple[float, float, dict[str, str]]:
    """A node's clock against this one, how sure that is, and its versions."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    task = library.remote(num_cpus=0)(_look).options(scheduling_strategy=here)
    library.get(task.remote(), timeout=60.0)  # its process is there after this
    before = time.time()
    there, versions = library.get(task.remote(), timeout=60.0)
    after = time.time()
    return there - (before + after) / 2, (after - before) / 2, versions


def _look() -> tuple[float, dict[str, str]]:
    from hse_dist.doctor.versions import EXACT, installed

    now, there = time.time(), installed()
    return now, {name: there[name] for name in EXACT if name in there}


def _alike(versions: dict[str, dict[str, str]]) -> Finding:
    from hse_dist.doctor.versions import EXACT, installed

    there = installed()
    here = {name: there[name] for name in EXACT if name in there}
    differ = [
        f"{where}: {name} {found.get(name)}, here {here.get(name)}"
        for where, found in versions.items()
        for name in sorted({*found, *here})
        if found.get(name) != here.get(name)
    ]
    if differ:
        return Finding("versions of nodes", "failed", "; ".join(differ), "Install the same versions on every node.")
    return Finding("versions of nodes", "ok", f"{len(versions)} node(s) as here")


def main(arguments: list[str]) -> int:
    """Run one probe; standard output is for its findings alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("probe", choices=("libraries", "ranks", "rank", "ray"))
    parser.add_argument("--at", default="", help="where ranks meet, or the address of a Ray cluster")
    words = parser.parse_args(arguments)
    stdout, sys.stdout = sys.stdout, sys.stderr
    if words.probe == "rank":
        _rank(1, words.at)
        return 0
    found = libraries() if words.probe == "libraries" else ranks() if words.probe == "ranks" else ray(words.at)
    stdout.write("\n" + json.dumps([asdict(one) for one in found]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
